"""Kernels of ours for processors, in C: what a decode step spends its time in, where no library is as fast."""
