"""The hardware backends: device queries and limits, CUDA kernels, and BLAS on the CPU."""
