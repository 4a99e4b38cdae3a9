"""What differs between devices: NPU, CUDA and CPU behind one interface, precision, copies, compilation, profiling, and
what the host offers. Nothing outside this package names an accelerator."""
