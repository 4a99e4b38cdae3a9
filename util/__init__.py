"""Everything below the entry scripts. The modules of this folder serve all packages and are independent of models, data
and runs: errors, log, text, files, locks, feature detection, model sizes. The packages, each importing only earlier
ones: config, devices, distributed, models, data, checkpoints, reporting, training, tools.
"""
import os
import sys

from util.compat import report_import_error

# torch >= 2.5 loads an installed torch_npu by itself, and `import torch` then fails without CANN. This line runs before
# any of our modules imports torch, and overrides the user's shell; util.devices.accelerator imports torch_npu, guarded.
os.environ['TORCH_DEVICE_BACKEND_AUTOLOAD'] = '0'
sys.excepthook = report_import_error
