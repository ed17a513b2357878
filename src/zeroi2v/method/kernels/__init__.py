"""Triton kernels of the method, for CUDA devices. The slow form of each kernel stands beside it."""
