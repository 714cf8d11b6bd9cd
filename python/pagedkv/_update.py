"""Writing and reading the pages of one layer, on arrays in host memory."""

from __future__ import annotations

from typing import Any

from . import _core

_STRICT = 1
READ_SOON = 4


def _flags(strict: bool, read_soon: bool = False) -> int:
    return (_STRICT if strict else 0) | (READ_SOON if read_soon else 0)


def _dtype_name(dtype: Any) -> str | None:
    """Of a name, a dtype of NumPy or PyTorch, or a scalar type such as ``ml_dtypes.int4``."""
    if dtype is None or isinstance(dtype, str):
        return dtype
    return str(getattr(dtype, "__name__", None) or str(dtype).rpartition(".")[2])


def kv_cache_update(
    new_kv: Any,
    slices: Any,
    kv_cache: Any,
    num_kv_update_slices: Any,
    *,
    page_size: int = 32,
    num_slices_per_block: int | None = None,
    strict: bool = False,
    read_soon: bool = False,
    k_scale: Any = None,
    v_scale: Any = None,
    cache_dtype: Any = None,
) -> Any:
    """Write new keys and values into the pages of a cache, in place.

    For every ``i < n`` and ``len = slices[2, i]``::

        kv_cache[slices[0, i] : +len] = new_kv[slices[1, i] : +len]

    Every other byte of the cache keeps its value. Columns from ``n`` on are not read.
    A slice may be longer than a page. With one dtype on both sides bits are copied: NaN payloads
    stay. Else each element is multiplied by 1 / scale and rounded once, as docs/numerics.md says.

    Args:
        new_kv: ``[T, C, D]``, read only. C is 2 * KV heads (K0, V0, K1, V1, ...), or any
            other number of rows a token.
        slices: int32 ``[3, N]``: kv_cache_start, new_kv_start, slice_len, in tokens.
        kv_cache: ``[pages * page_size, C, D]`` or ``[pages, page_size, C, D]``, written in
            place. Any strides, but the last axis is contiguous.
        num_kv_update_slices: n, an int or an int32 or int64 array of one element.
        page_size: tokens a page. A cache of 4 axes says it itself.
        num_slices_per_block: accepted because upstream has it; a CPU needs no blocks.
        strict: refuse what upstream's validator refuses.
        read_soon: the rows are read again at once, so keep them in the processor's cache.
        k_scale, v_scale: scales of the K heads (0, 2, ... of C, which is even then) and of the V
            heads, for a cache of float8, int8 or int4; None is 1. The shape says how they are
            shared, with H = C / 2:

            * a number, or float32 of one element: one for all;
            * float32 ``[H]``: one a head;
            * float32 ``kv_cache.shape[:-2] + (H,)``: one a slot and head. Computed and written
              with each token (so the array is writable), read by :func:`kv_cache_gather`;
            * float32 ``kv_cache.shape[:-2] + (H, G)``: the same for each D / G elements.

            Strides are free, but the axis G is contiguous. With the cache's own dtype in new_kv
            the elements are quantised already: given scales are not looked at, and arrays of
            scales a slot are refused.
        cache_dtype: what a kv_cache of unsigned integers holds, as in ``"float8_e4m3fn"`` for
            uint8. ``"int4"``: kv_cache is uint8 ``[..., C, D / 2]``, two elements an item, the
            even one in the low four bits.

    Arrays are NumPy arrays (ml_dtypes too), PyTorch tensors, or anything with DLPack, in host
    memory. new_kv and kv_cache hold the same dtype, of any kind, or new_kv holds float32, float16
    or bfloat16 and kv_cache another of these, float8_e4m3fn, float8_e5m2, int8 or int4. Nothing is
    copied to get at them: what cannot be used in place is refused.

    Returns:
        kv_cache, the same object.

    Raises:
        InvalidError: a dtype, shape or stride that cannot be, a read-only cache, memory that
            overlaps.
        RangeError: n or a slice outside its bounds; ``index`` names the slice. A given scale that
            is not finite or is below 2**-126; ``index`` names the head.
        StrictError: strict mode, upstream's further rules.
        UnsupportedError: memory of another device.

    After an exception nothing was written. The interpreter's lock is released during the
    write; calls may run at the same time on one cache if their slots differ.
    """
    del num_slices_per_block
    if getattr(kv_cache, "ndim", 3) == 4:
        page_size = None  # type: ignore[assignment]
    _core.move(False, new_kv, None, slices, kv_cache, None, num_kv_update_slices, page_size,
               _flags(strict, read_soon), k_scale, v_scale, _dtype_name(cache_dtype))
    return kv_cache


def kv_cache_update_separate(
    key: Any,
    value: Any,
    slices: Any,
    key_cache: Any,
    value_cache: Any,
    num_kv_update_slices: Any,
    *,
    page_size: int | None = None,
    strict: bool = False,
    read_soon: bool = False,
    k_scale: Any = None,
    v_scale: Any = None,
    cache_dtype: Any = None,
) -> None:
    """The same for K and V apart, both written by one call.

    Args:
        key, value: ``[T, H, Dk]`` and ``[T, H, Dv]``; views into a fused QKV output will do.
        key_cache, value_cache: ``[pages * page_size, H, D]`` or ``[pages, page_size, H, D]``.
            Strides are free, so ``[pages, H, page_size, D]`` goes in as ``.swapaxes(1, 2)``.
        page_size: strict mode needs it for caches of 3 axes; else it does not matter.
        k_scale, v_scale: as there, with H heads and each cache's own D.
        cache_dtype: of both caches.

    The rest, and what is raised, as :func:`kv_cache_update`.
    """
    _core.move(False, key, value, slices, key_cache, value_cache, num_kv_update_slices, page_size,
               _flags(strict, read_soon), k_scale, v_scale, _dtype_name(cache_dtype))


def kv_cache_gather(
    kv_cache: Any,
    slices: Any,
    num_kv_update_slices: Any,
    out: Any,
    *,
    page_size: int = 32,
    strict: bool = False,
    k_scale: Any = None,
    v_scale: Any = None,
    cache_dtype: Any = None,
) -> Any:
    """Read rows back out of the pages: the inverse of :func:`kv_cache_update`.

    Args:
        kv_cache: as there, only read.
        out: ``[T, C, D]``, written in place: row ``slices[1, i] + j`` becomes slot
            ``slices[0, i] + j``. Rows that no slice names keep their value.
        k_scale, v_scale, cache_dtype: as there, but only read: out in float32, float16 or
            bfloat16 becomes each element times its scale, rounded once. Out in the cache's own
            dtype is a copy, so scales a slot are refused.

    Returns:
        out, the same object. Raises as :func:`kv_cache_update`.
    """
    if getattr(kv_cache, "ndim", 3) == 4:
        page_size = None  # type: ignore[assignment]
    _core.move(True, out, None, slices, kv_cache, None, num_kv_update_slices, page_size,
               _flags(strict), k_scale, v_scale, _dtype_name(cache_dtype))
    return out


def kv_cache_gather_separate(
    key_cache: Any,
    value_cache: Any,
    slices: Any,
    num_kv_update_slices: Any,
    key_out: Any,
    value_out: Any,
    *,
    page_size: int | None = None,
    strict: bool = False,
    k_scale: Any = None,
    v_scale: Any = None,
    cache_dtype: Any = None,
) -> None:
    """The inverse of :func:`kv_cache_update_separate`: fills key_out and value_out."""
    _core.move(True, key_out, value_out, slices, key_cache, value_cache, num_kv_update_slices,
               page_size, _flags(strict), k_scale, v_scale, _dtype_name(cache_dtype))
