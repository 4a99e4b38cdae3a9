"""What the entry scripts share, one idea a module."""
import os

# torch >= 2.5 loads an installed torch_npu by itself, and `import torch` then fails where CANN is missing.
# util.devices.accelerator imports torch_npu, guarded; this line runs before any module of ours imports torch. It also
# overrules a 1 from the user's shell: nothing is lost by it.
os.environ['TORCH_DEVICE_BACKEND_AUTOLOAD'] = '0'
