"""The device at work: its limits, CUDA kernels and their compiler, and BLAS on the CPU."""
