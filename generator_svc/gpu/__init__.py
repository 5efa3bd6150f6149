"""Decode steps on a GPU: static buffers, kernels in Triton with a twin of each in torch, and CUDA graphs."""
