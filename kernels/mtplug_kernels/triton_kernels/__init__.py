"""The Triton kernels; :mod:`mtplug_kernels.operators` launches them."""
