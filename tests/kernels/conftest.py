"""Kernels run in Triton's interpreter, on tensors of the CPU."""

import os

# Triton reads it while a kernel's module is imported: set any later, kernels would be compiled for a GPU.
os.environ["TRITON_INTERPRET"] = "1"
