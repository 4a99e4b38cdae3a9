"""Devices and the host: choosing the accelerator, precision, host-to-device copies, compilation, profiling, CPU cores.

No other package names an accelerator (CUDA, NPU) or its libraries. Several processes belong to util.distributed.
"""
