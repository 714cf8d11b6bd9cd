"""PyTorch tensors for one update, their bytes, and the bytes that the cache must have then."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import model

PAGE, SLOTS, TOKENS, HEADS, DIM = 16, 96, 12, 4, 8

# Bits that PyTorch compares as integers, so that NaNs are equal to themselves.
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.uint8,
          torch.float8_e4m3fn, torch.float8_e5m2, torch.bool, torch.complex64]


def bits(tensor: torch.Tensor) -> Any:
    """A copy of a tensor's bytes, in NumPy."""
    if tensor.dtype == torch.complex64:
        tensor = torch.view_as_real(tensor.detach()).flatten(-2)
    return tensor.detach().contiguous().view(BITS[tensor.element_size()]).clone().numpy()


def randoms(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Random bits."""
    rng = np.random.default_rng(seed)
    size = torch.empty(0, dtype=dtype).element_size()
    high = 2 if dtype == torch.bool else 256
    if 0 in shape:
        return torch.empty(shape, dtype=dtype)
    raw = rng.integers(0, high, int(np.prod(shape)) * size, np.uint8)
    return torch.from_numpy(raw).view(dtype).reshape(shape)


def arguments(dtype: torch.dtype = torch.float32, n: int = 3) -> dict[str, torch.Tensor]:
    slices = [[5, 0, 3], [16, 3, 8], [90, 11, 1], [-7, 99, 2**31 - 1]]  # the last is garbage
    return {
        "kv": randoms(1, TOKENS, HEADS, DIM, dtype=dtype),
        "slot_mapping": torch.tensor(slices, dtype=torch.int32).T.contiguous(),
        "kv_cache": randoms(2, SLOTS, HEADS, DIM, dtype=dtype),
        "num_kv_update_slices": torch.tensor([n], dtype=torch.int32),
    }


def expected(a: dict[str, torch.Tensor]) -> Any:
    """The bytes that the cache must have afterwards."""
    want = bits(a["kv_cache"])
    n = int(a["num_kv_update_slices"])
    model.update(bits(a["kv"]), model.columns(a["slot_mapping"].numpy(), n), want)
    return want
