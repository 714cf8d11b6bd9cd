"""The library's work done again, slowly: loops over tokens, on bytes, sharing no code with it.

Everything works on uint8 views whose last axis is the bytes of one head vector, so padding,
NaN payloads and dtypes that NumPy cannot compute with are compared like all else.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Slice = tuple[int, int, int]  # kv_cache_start, new_kv_start, slice_len

POISON = 0xA5

DTYPES: dict[str, Any] = {
    name: np.dtype(name)
    for name in ("float16", "float32", "float64", "int8", "uint8", "int16", "bool", "complex128")
} | {
    name: np.dtype(getattr(ml_dtypes, name))
    for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2", "int4")
}


# ---- memory ------------------------------------------------------------------------


@dataclass
class Arena:
    """Poisoned memory with one strided array in it; `bytes` sees every byte, padding too."""

    memory: Bytes
    array: Any
    bytes: Bytes  # the same items, the last axis in bytes

    @classmethod
    def make(
        cls, shape: Sequence[int], dtype: Any, *, pad: Sequence[int] | None = None,
        order: Sequence[int] | None = None, margin: int = 64,
    ) -> Arena:
        """`order` lists the axes from the outermost to the innermost in memory; the last axis
        stays last. `pad` is how many items lie behind each axis' content."""
        dtype = np.dtype(dtype)
        axes = list(order) if order is not None else list(range(len(shape)))
        assert axes[-1] == len(shape) - 1
        pad = pad or [0] * len(shape)
        strides = [0] * len(shape)
        step = dtype.itemsize
        for axis in reversed(axes):
            strides[axis] = step
            step = step * shape[axis] + pad[axis] * dtype.itemsize
        memory = np.full(step + 2 * margin, POISON, np.uint8)
        return cls._view(memory, shape, dtype, margin, strides)

    def fill(self, rng: np.random.Generator) -> Arena:
        """Random bits in the items: NaN payloads of every kind, signalling ones too."""
        if self.array.dtype == np.bool_:
            self.bytes[...] = rng.integers(0, 2, self.bytes.shape, np.uint8)
        else:
            self.bytes[...] = rng.integers(0, 256, self.bytes.shape, np.uint8)
        return self

    def copy(self) -> Arena:
        """The same bytes and strides elsewhere, to work the expected result out in."""
        offset = self.array.__array_interface__["data"][0] - self.memory.ctypes.data
        return self._view(self.memory.copy(), self.array.shape, self.array.dtype, offset,
                          self.array.strides)

    def columns(self, first: int, heads: int, dim: int) -> Arena:
        """Columns of a 2-D array as [rows, heads, dim], in the same memory."""
        item, row = self.array.itemsize, self.array.strides[0]
        offset = self.array.__array_interface__["data"][0] - self.memory.ctypes.data
        return self._view(self.memory, (len(self.array), heads, dim), self.array.dtype,
                          offset + first * item, (row, dim * item, item))

    @staticmethod
    def _view(memory: Bytes, shape: Sequence[int], dtype: Any, offset: int,
              strides: Sequence[int]) -> Arena:
        raw_shape = (*shape[:-1], shape[-1] * dtype.itemsize)
        if 0 in shape:  # NumPy is strict about strides of what is not there
            return Arena(memory, np.empty(shape, dtype), np.empty(raw_shape, np.uint8))
        return Arena(memory, np.ndarray(tuple(shape), dtype, memory, offset, tuple(strides)),
                     np.ndarray(raw_shape, np.uint8, memory, offset, (*strides[:-1], 1)))


def item_bytes(array: Any) -> Bytes:
    """A NumPy array's bytes, its last axis `[D * item size]`; the array must be contiguous."""
    array = np.asarray(array)
    assert array.flags.c_contiguous
    return array.reshape(-1).view(np.uint8).reshape(*array.shape[:-1],
                                                    array.shape[-1] * array.dtype.itemsize)


def check_same(got: Any, want: Any, **context: Any) -> None:
    """Equal bytes, or an error that says where they part and for which inputs."""
    a, b = (np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in (got, want))
    if a.size == b.size and np.array_equal(a, b):
        return
    words = ", ".join(f"{key}={value}" for key, value in context.items())
    if a.size != b.size:
        raise AssertionError(f"{a.size} bytes instead of {b.size}: {words}")
    first = int(np.argmax(a != b))
    raise AssertionError(
        f"byte {first} is {a[first]:#04x} instead of {b[first]:#04x}, {int((a != b).sum())} of "
        f"{a.size} differ: {words}")


# ---- update and gather -------------------------------------------------------------


def slot_of(cache: Bytes, slot: int) -> Bytes:
    """The bytes [H, D] of one slot of a cache of 3 or 4 axes."""
    if cache.ndim == 3:
        return cache[slot]
    return cache[slot // cache.shape[1], slot % cache.shape[1]]


def update(rows: Bytes, slices: Sequence[Slice], cache: Bytes) -> None:
    for cache_start, row_start, length in slices:
        for i in range(length):
            slot_of(cache, cache_start + i)[...] = rows[row_start + i]


def gather(cache: Bytes, slices: Sequence[Slice], rows: Bytes) -> None:
    for cache_start, row_start, length in slices:
        for i in range(length):
            rows[row_start + i] = slot_of(cache, cache_start + i)


def columns(slices: Any, n: int) -> list[Slice]:
    """The first n columns of an int32 [3, N]."""
    return [(int(a), int(b), int(c)) for a, b, c in np.asarray(slices)[:, :n].T]


# ---- plans -------------------------------------------------------------------------


def plan(
    computed: Sequence[int], scheduled: Sequence[int], pages: Sequence[Sequence[int]],
    page_size: int, max_slice_tokens: int | None = None,
) -> list[Slice]:
    """One slice for each page that a request touches, then neighbours joined."""
    result: list[Slice] = []
    row = 0
    for done, now, own in zip(computed, scheduled, pages, strict=True):
        pieces: list[list[int]] = []
        for position in range(done, done + now):
            slot = own[position // page_size] * page_size + position % page_size
            if position == done or position % page_size == 0:
                pieces.append([slot, row, 0])
            pieces[-1][2] += 1
            row += 1
        joined: list[list[int]] = []
        for piece in pieces:
            last = joined[-1] if joined else None
            adjacent = last is not None and last[0] + last[2] == piece[0]
            if (last is not None and adjacent and max_slice_tokens is not None
                    and max_slice_tokens != page_size
                    and (max_slice_tokens == 0 or last[2] + piece[2] <= max_slice_tokens)):
                last[2] += piece[2]
            else:
                joined.append(piece)
        result += [(a, b, c) for a, b, c in joined]
    return result


def plan_slots(
    slots: Sequence[int], page_size: int, max_slice_tokens: int | None = None,
    query_start_loc: Sequence[int] = (),
) -> list[Slice]:
    exact = max_slice_tokens is None or max_slice_tokens == page_size
    result: list[list[int]] = []
    for token, slot in enumerate(slots):
        if slot < 0:
            continue
        last = result[-1] if result else None
        if (last is not None and last[0] + last[2] == slot and last[1] + last[2] == token
                and token not in query_start_loc and not (exact and slot % page_size == 0)
                and (exact or max_slice_tokens == 0 or last[2] < (max_slice_tokens or 0))):
            last[2] += 1
        else:
            result.append([slot, token, 1])
    return [(a, b, c) for a, b, c in result]


def token_buckets(least: int, most: int, gap: int) -> list[int]:
    sizes = [least]
    while sizes[-1] < most:
        double = sizes[-1] * 2
        sizes.append(double if gap == 0 or double <= gap else sizes[-1] + gap)
    return sizes


def step(
    computed: Sequence[int], scheduled: Sequence[int], pages: Sequence[Sequence[int]],
    page_size: int, max_num_reqs: int, max_num_batched_tokens: int, width: int, gap: int,
    max_slice_tokens: int | None,
) -> dict[str, Any]:
    """The seven fields of upstream's metadata, and what they were padded to."""
    n, tokens = len(computed), sum(scheduled)
    buckets = token_buckets(16, max_num_batched_tokens, gap)
    bucket = next(b for b in buckets if b >= tokens)
    slices = plan(computed, scheduled, pages, page_size, max_slice_tokens)
    mapping = np.zeros((3, min(2 * max_num_reqs + bucket // page_size, bucket)), np.int32)
    tables = np.zeros((max_num_reqs, width), np.int32)
    lens = np.zeros(max_num_reqs, np.int32)
    starts = np.ones(max_num_reqs + 1, np.int32)
    starts[0] = 0
    for i, (a, b, c) in enumerate(slices):
        mapping[:, i] = a, b, c
    for r in range(n):
        lens[r] = computed[r] + scheduled[r]
        starts[r + 1] = starts[r] + scheduled[r]
        used = -(-int(lens[r]) // page_size)
        tables[r, :used] = pages[r][:used]
    return {
        "slot_mapping": mapping, "block_tables": tables, "context_lens": lens,
        "query_start_loc": starts, "num_seqs": np.array([n], np.int32),
        "num_kv_update_slices": np.array([len(slices)], np.int32),
        "num_tokens": tokens, "token_bucket": bucket,
    }


# ---- random batches ----------------------------------------------------------------


@dataclass
class Batch:
    """Requests with their pages; no page belongs to two of them."""

    computed: list[int]
    scheduled: list[int]
    pages: list[list[int]]
    page_size: int
    num_pages: int

    @property
    def num_tokens(self) -> int:
        return sum(self.scheduled)


def make_batch(
    rng: np.random.Generator, sizes: Sequence[tuple[int, int]], page_size: int,
    spare_pages: int = 2, scatter: bool = True,
) -> Batch:
    """`sizes` is (computed, scheduled) for each request. Unscattered pages lie in a row."""
    counts = [-(-(done + now) // page_size) for done, now in sizes]
    num_pages = sum(counts) + spare_pages
    ids = rng.permutation(num_pages) if scatter else np.arange(num_pages)
    pages, at = [], 0
    for count in counts:
        pages.append([int(p) for p in ids[at:at + count]])
        at += count
    return Batch([d for d, _ in sizes], [s for _, s in sizes], pages, page_size, num_pages)


def with_garbage(rng: np.random.Generator, slices: Any, n: int, extra: int) -> Any:
    """int32 [3, N] whose columns from n on are what no slice could be."""
    wide = rng.integers(-2**31, 2**31, (3, n + extra), dtype=np.int64).astype(np.int32)
    wide[:, :n] = np.asarray(slices)[:, :n]
    return wide


# ---- DLPack by hand ----------------------------------------------------------------


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("n_dims", ctypes.c_int32), ("type_code", ctypes.c_uint8), ("type_bits", ctypes.c_uint8),
        ("type_lanes", ctypes.c_uint16), ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)), ("byte_offset", ctypes.c_uint64)]


class _Managed(ctypes.Structure):
    _fields_ = [("tensor", _Tensor), ("manager", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]


class _Versioned(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32), ("minor", ctypes.c_uint32), ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p), ("flags", ctypes.c_uint64), ("tensor", _Tensor)]


class RawDLPack:
    """An export of an array's memory with any field set to anything, and its deleter counted."""

    def __init__(self, array: Any, *, versioned: bool = True, major: int = 1, flags: int = 0,
                 strides: bool = True, byte_offset: int = 0, shape: Sequence[int] | None = None,
                 with_deleter: bool = True, **fields: int) -> None:
        self.array = array
        self.deleted: list[int] = []
        self._delete = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self.deleted.append)
        shape = array.shape if shape is None else shape
        self._shape = (ctypes.c_int64 * len(shape))(*shape)
        self._strides = (ctypes.c_int64 * len(shape))(
            *(s // array.itemsize for s in array.strides), *[1] * (len(shape) - array.ndim))
        kind = {"i": 0, "u": 1, "f": 2}[array.dtype.kind]
        tensor = _Tensor(array.ctypes.data - byte_offset, 1, 0, len(shape), kind,
                         8 * array.itemsize, 1, self._shape, None, byte_offset)
        if strides:
            tensor.strides = self._strides
        for name, value in fields.items():
            if name == "strides_0":
                self._strides[0] = value
            else:
                setattr(tensor, name, value)
        deleter = ctypes.cast(self._delete, ctypes.c_void_p) if with_deleter else None
        self._name = b"dltensor_versioned" if versioned else b"dltensor"
        self._managed = (_Versioned(major, 0, None, deleter, flags, tensor) if versioned
                         else _Managed(tensor, None, deleter))

    def __dlpack__(self, **_: Any) -> Any:
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p,
                                                       ctypes.c_void_p]
        return new(ctypes.addressof(self._managed), self._name, None)

    def __dlpack_device__(self) -> Any:
        return (1, 0)
