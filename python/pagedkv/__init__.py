"""pagedkv: the paged KV cache of an LLM inference engine.

Plan a step once, write new keys and values into the pages of every layer, read them back::

    import numpy as np, pagedkv

    cache = np.zeros((512 * 16, 16, 128), np.float16)      # 512 pages of 16 tokens
    new_kv = np.ones((40, 16, 128), np.float16)            # 40 tokens, K and V of 8 heads
    slices, n = pagedkv.plan([0, 10], [10, 30], [[100], [200, 201, 202]], page_size=16)
    pagedkv.kv_cache_update(new_kv, slices, cache, n, page_size=16)

``pagedkv.torch`` registers PyTorch operators, ``pagedkv.jax`` holds the JAX function, and
``pagedkv.tpu`` the kernel for TPUs.
"""

from __future__ import annotations

import os as _os
from pathlib import Path as _Path

from . import _core, sizing
from ._errors import (
    DeviceError,
    Error,
    InvalidError,
    NoMemoryError,
    NoPagesError,
    RangeError,
    StateError,
    StrictError,
    UnsupportedError,
)
from ._plan import Plan, StepPlan, check_slices, plan, plan_slot_mapping, plan_step
from ._update import (
    kv_cache_gather,
    kv_cache_gather_separate,
    kv_cache_update,
    kv_cache_update_separate,
)

__version__: str = _core.version()

__all__ = [
    "DeviceError",
    "Error",
    "InvalidError",
    "NoMemoryError",
    "NoPagesError",
    "Plan",
    "RangeError",
    "StepPlan",
    "StateError",
    "StrictError",
    "UnsupportedError",
    "check_slices",
    "cuda_device_count",
    "get_include",
    "get_num_threads",
    "instruction_set",
    "kv_cache_gather",
    "kv_cache_gather_separate",
    "kv_cache_update",
    "kv_cache_update_separate",
    "plan",
    "plan_slot_mapping",
    "plan_step",
    "set_num_threads",
    "sizing",
]


def get_num_threads() -> int:
    """How many threads one call uses at most."""
    return _core.get_num_threads()


def set_num_threads(n: int) -> None:
    """Use at most n threads a call from now on, in the whole process.

    The first value is that of the environment variable PAGEDKV_NUM_THREADS, else the number
    of processors that the process may use, 16 at most. 64 is the most that is used; calls of
    less than 4 MiB use one thread.
    """
    _core.set_num_threads(n)


def instruction_set() -> str:
    """The instruction set in use: "c", "avx2", "avx512" or "neon" (PAGEDKV_ISA chooses)."""
    return _core.isa()


def cuda_device_count() -> int:
    """How many CUDA devices the driver has; 0 without a driver, or in a build without CUDA."""
    return _core.cuda_device_count()


def get_include() -> str:
    """The folder of the C header, for ``#include <pagedkv/pagedkv.h>``.

    The library to link is not in the wheel: ``make install`` puts it where a linker finds it.
    """
    return str(_Path(__file__).parent / "include")


def _first_num_threads() -> int:
    text = _os.environ.get("PAGEDKV_NUM_THREADS", "")
    if text.isdigit() and int(text) > 0:
        return min(64, int(text))
    return max(1, min(16, len(_os.sched_getaffinity(0))))


_core.set_num_threads(_first_num_threads())
