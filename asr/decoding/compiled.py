"""Python functions as machine code (numba), kept on disk once they are compiled.

What is kept is compiled again when the function's own file changes, and then only: who changes a constant that a kernel
takes from another file (:mod:`asr.decoding.search_state` has the columns) touches the kernel's file, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

Kernel = TypeVar("Kernel", bound=Callable[..., Any])


def compiled(function: Kernel) -> Kernel:
    """Compile a function when it is first called, and keep what came of it next to the code or, where that cannot be
    written, in numba's folder of the user; where neither can, every process compiles anew. Other threads run
    meanwhile."""
    return _compile(function)


def inlined(function: Kernel) -> Kernel:
    """:func:`compiled`, for small functions that others call: a part of these."""
    return _compile(function, inline=True)


def compiled_for(signature: str) -> Callable[[Kernel], Kernel]:
    """:func:`compiled` at once, for arguments of the types of a numba signature; others raise TypeError."""
    return lambda function: _compile(function, signature)


def _compile(function: Kernel, signature: str | None = None, inline: bool = False) -> Kernel:
    njit: Any = numba.njit
    options = {"error_model": "numpy", "nogil": True, "forceinline": inline}
    try:
        kernel: Kernel = njit(signature, cache=True, **options)(function)
    except RuntimeError:  # no place to keep it
        kernel = njit(signature, **options)(function)
    return kernel
