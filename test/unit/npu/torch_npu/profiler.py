"""torch_npu.profiler: traces the host, which is all there is."""
import os

import torch

_folder = None


def tensorboard_trace_handler(dir_name=None):
    global _folder
    _folder = dir_name
    return lambda trace: trace.export_chrome_trace(os.path.join(trace.raw, 'ASCEND_PROFILER_OUTPUT', 'trace_view.json'))


class profile(torch.profiler.profile):
    """As the original it takes keywords only, and without a handler it writes raw data into the current folder."""

    def __init__(self, *, activities=None, schedule=None, on_trace_ready=None):
        super().__init__(activities=activities, schedule=schedule, on_trace_ready=on_trace_ready)

    def start(self):
        print('emulated torch_npu.profiler', flush=True)
        self.raw = os.path.join(_folder or os.getcwd(), 'host_{}_ascend_pt'.format(os.getpid()))
        os.makedirs(os.path.join(self.raw, 'ASCEND_PROFILER_OUTPUT'))
        super().start()
