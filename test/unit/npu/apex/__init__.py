"""Stand-in for Ascend's apex, for tests: amp at O2 and NpuFusedAdamW, with the original's interface and its hazards.

It runs on any device that computes in fp16.
"""
from . import amp, optimizers  # noqa: F401
