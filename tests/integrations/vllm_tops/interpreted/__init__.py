"""Declare Triton's interpreter as its backend for CPUs, so that vLLM runs its second model runner without a GPU.

With ``TRITON_INTERPRET=1`` Triton runs kernels on CPU tensors without compiling them. vLLM's build for CPUs only asks
whether there is a backend named ``cpu``; a package on PyPI that compiles for CPUs does not exist.
"""
