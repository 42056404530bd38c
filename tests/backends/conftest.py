"""How tests run the Triton kernels: on a GPU where there is one, else in Triton's interpreter on the CPU's tensors."""

import warnings

import numpy as np
import pytest
import torch

CUDA = torch.cuda.is_available()


@pytest.fixture
def kernels(monkeypatch):
    """Have kernels run, and tensors made where they run."""
    if CUDA:
        torch.set_default_device("cuda")
        yield
        torch.set_default_device(None)
        return
    from triton.runtime import interpreter

    def call(self, *arguments, **more):
        if self.fn.__module__ not in _prepared:
            _prepared.add(self.fn.__module__)
            interpreter._patch_lang(self.fn)
        return self.rewrite()(*arguments, **more)

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(interpreter.InterpretedFunction, "__call__", call)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", _dot)
    # The interpreter computes with NumPy, which warns of what a GPU computes without a word: log2 of 0, inf - inf.
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* encountered", RuntimeWarning)
        yield


def _dot(builder, a, b, total, *_):
    """A product of matrices. As on a GPU, its digits do not depend on which of the two is named first.

    The interpreter keeps bfloat16 as the bits of integers, and would multiply those.
    """
    from triton.runtime.interpreter import TensorHandle

    del builder
    product = _numbers(a) @ _numbers(b)
    return TensorHandle((product + total.data).astype(total.data.dtype), total.dtype.scalar)


def _numbers(handle):
    bits = handle.data
    if handle.dtype.scalar.is_bf16():
        bits = (bits.astype(np.uint32) << 16).view(np.float32)
    return bits.astype(np.float64)


# Modules whose functions the interpreter was prepared for. It does that in each call from kernel to function, and never
# undoes it; that takes three quarters of the time.
_prepared: set[str] = set()
