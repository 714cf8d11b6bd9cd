"""The paged KV cache update as a Pallas kernel for TPU.

The number of real slices is an operand, and the grid is as long as it asks for:
one compiled program serves every count.  docs/tpu.md says how the kernel works
and what was checked.  This module needs JAX, and nothing of the C library.
"""

from __future__ import annotations

import numbers
import operator
from typing import Any, Optional, Union

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

__all__ = [
    "fills_tiles",
    "kv_cache_update",
    "num_slices_per_block_for",
    "padded_head_dim",
    "padded_num_combined_heads",
]

LANES = 128
SUBLANES = 8
VMEM_LIMIT_BYTES = 40 * 2**20
MAX_SLICES_PER_BLOCK = 64

# Bits are copied, never converted.  These the compiler takes; float16 it refuses.
FLOAT_DTYPES = ("bfloat16", "float32", "float8_e4m3fn", "float8_e5m2")
INT_DTYPES = ("int8", "uint8", "int16", "uint16", "int32", "uint32")

# What the compiler needs in VMEM beside our scratch.
_VMEM_RESERVE_BYTES = 2**20
_INT32_MAX = 2**31 - 1


def padded_head_dim(head_dim: int) -> int:
    """Elements that a head vector takes in a TPU's memory: the next multiple of 128."""
    return -(-head_dim // LANES) * LANES


def padded_num_combined_heads(num_combined_heads: int, dtype: Any) -> int:
    """Rows that C head vectors of a token take in a TPU's memory.

    Rows of less than 32 bits are packed in words.  Up to 8 rows fill a tile of a
    power of two; more fill tiles of 8.
    """
    pack = max(1, 4 // jnp.dtype(dtype).itemsize)
    if num_combined_heads > SUBLANES // 2:
        return -(-num_combined_heads // SUBLANES) * SUBLANES
    return max(pack, 1 << (num_combined_heads - 1).bit_length())


def fills_tiles(num_combined_heads: int, head_dim: int, dtype: Any) -> bool:
    """Whether [tokens, C, D] has no padding in a TPU's memory.

    Then XLA lays it out in row-major order by itself.  Else XLA takes another
    order, and a kernel that works in place gets a copy of the whole cache.
    """
    return (
        padded_num_combined_heads(num_combined_heads, dtype) == num_combined_heads
        and padded_head_dim(head_dim) == head_dim
    )


def num_slices_per_block_for(
    max_slice_tokens: int,
    num_combined_heads: int,
    head_dim: int,
    dtype: Any,
    vmem_limit_bytes: int = VMEM_LIMIT_BYTES,
) -> int:
    """Copies in flight that the scratch budget allows: a power of two, 64 at most.

    `max_slice_tokens` is the length of a scratch row in tokens.  One MiB of
    `vmem_limit_bytes` is left to the compiler.  Raises ValueError if the rest
    does not hold even one row.
    """
    row_bytes = _row_bytes(max_slice_tokens, num_combined_heads, head_dim, dtype)
    rows = (vmem_limit_bytes - _VMEM_RESERVE_BYTES) // row_bytes
    if rows < 1:
        raise ValueError(
            f"vmem_limit_bytes={vmem_limit_bytes} less {_VMEM_RESERVE_BYTES} holds no"
            f" scratch row of {row_bytes} bytes (max_slice_tokens={max_slice_tokens})"
        )
    return min(MAX_SLICES_PER_BLOCK, 1 << (rows.bit_length() - 1))


def kv_cache_update(
    new_kv: jax.Array,
    slices: jax.Array,
    kv_cache: jax.Array,
    num_kv_update_slices: Union[jax.Array, int],
    *,
    page_size: int = 32,
    num_slices_per_block: Optional[int] = None,
    max_slice_tokens: Optional[int] = None,
    vmem_limit_bytes: Optional[int] = VMEM_LIMIT_BYTES,
    row_major: bool = False,
    interpret: Optional[pltpu.InterpretParams] = None,
) -> jax.Array:
    """Copies slices of new tokens into the cache, in place, on a TPU.

    For i < n: kv_cache[slices[0, i] : + slices[2, i]] = new_kv[slices[1, i] : + slices[2, i]].
    Every other byte of the cache keeps its value, and what stands in columns n
    to N never matters.  A slice of no tokens does nothing.  A slice that is out of
    bounds of either buffer is skipped as a whole.  n < 0 and n > N write nothing.
    Where destinations overlap, the bytes of those rows are unspecified.

    Args:
      new_kv: [T, C, D], the new tokens, of the cache's dtype.  D may be less than the
        cache's: then it is padded with zeros, and the zeros are written too.
      slices: int32 [3, N], in tokens: kv_cache_start, new_kv_start, slice_len.
      kv_cache: [P * page_size, C, D], with C and D that fill a TPU's tiles, unless
        `row_major`.  Donate it to the jit around this call, else XLA copies it first.
      num_kv_update_slices: n, int32 [1], or an int.
      page_size: tokens in a page; only the default of `max_slice_tokens`.
      num_slices_per_block: copies in flight; None is what `vmem_limit_bytes` allows.
      max_slice_tokens: tokens in a scratch row.  A longer slice goes in several
        copies.  None is `page_size`.
      vmem_limit_bytes: what scratch and compiler may take; None is 40 MiB.
      row_major: the caller's word that the cache has XLA's layout of major to minor
        (0, 1, 2), so that any C and D work in place.
      interpret: pltpu.InterpretParams() runs the kernel in TPU interpret mode.

    Returns:
      The updated cache: `kv_cache`'s own buffer where that was donated.
    """
    page_size = _positive("page_size", page_size)
    row_tokens = _positive("max_slice_tokens", page_size if max_slice_tokens is None
                           else max_slice_tokens)
    limit = _positive("vmem_limit_bytes", VMEM_LIMIT_BYTES if vmem_limit_bytes is None
                      else vmem_limit_bytes)
    _check_arrays(new_kv, slices, kv_cache)
    _check_shapes(new_kv.shape, kv_cache.shape, page_size)
    if not row_major:
        _check_layout(kv_cache)
    count = _as_count(num_kv_update_slices)
    depth = _choose_depth(num_slices_per_block, row_tokens, kv_cache, limit)
    if not isinstance(kv_cache, jax.Array):
        # Of another library's array JAX would update a copy.
        raise ValueError(f"kv_cache must be a jax.Array, not {type(kv_cache).__name__}")
    if 0 in new_kv.shape or 0 in slices.shape or kv_cache.shape[0] == 0:
        return kv_cache  # no slice can be in bounds
    new_kv = _pad_head_dim(new_kv, kv_cache.shape[2])
    columns = slices.shape[1]
    count = jnp.where((count >= 0) & (count <= columns), count, 0)
    call = _pallas_call(kv_cache, count, depth, row_tokens, limit, interpret)
    return call(slices, count, new_kv, kv_cache)


def _pallas_call(
    kv_cache: jax.Array,
    count: jax.Array,
    depth: int,
    row_tokens: int,
    vmem_limit_bytes: int,
    interpret: Optional[pltpu.InterpretParams],
) -> Any:
    """The kernel over ceil(count / depth) blocks; that number is known only at run time."""
    in_hbm = pl.BlockSpec(memory_space=pltpu.HBM)
    grid_spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=2,
        in_specs=[in_hbm, in_hbm],
        out_specs=in_hbm,
        grid=(lax.div(count[0] + (depth - 1), jnp.int32(depth)),),
        scratch_shapes=[
            pltpu.VMEM((depth, row_tokens) + kv_cache.shape[1:], kv_cache.dtype),
            pltpu.SMEM((3, depth), jnp.int32),
            pltpu.SemaphoreType.DMA((depth,)),
            pltpu.SemaphoreType.DMA,
        ],
    )
    return pl.pallas_call(
        _copy_block,
        grid_spec=grid_spec,
        out_shape=jax.ShapeDtypeStruct(kv_cache.shape, kv_cache.dtype),
        input_output_aliases={3: 0},  # counts the two prefetched operands
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary",), vmem_limit_bytes=vmem_limit_bytes
        ),
        interpret=False if interpret is None else interpret,
        name="pagedkv_kv_cache_update",
    )


def _copy_block(slices, count, new_kv, _, kv_cache, rows, queue, loaded, stored):
    """One block of the grid: the next `depth` columns of `slices`, or those left of n.

    `rows` are the scratch rows, `queue` the copy that each of them carries: start
    in the cache, start in the new tokens, tokens.  A row has a semaphore of its own
    for its load, so its store starts when that load is done and waits for no other.
    """
    depth, row_tokens = rows.shape[:2]
    first = pl.program_id(0) * depth
    end = jnp.minimum(first + depth, count[0])

    def load(row):
        tokens = pl.ds(queue[1, row], queue[2, row])
        scratch = rows.at[row, pl.ds(0, queue[2, row])]
        return pltpu.make_async_copy(new_kv.at[tokens], scratch, loaded.at[row])

    def store(row):
        slots = pl.ds(queue[0, row], queue[2, row])
        scratch = rows.at[row, pl.ds(0, queue[2, row])]
        return pltpu.make_async_copy(scratch, kv_cache.at[slots], stored)

    def enqueue(state):
        column, done, used = state
        left = _tokens_to_copy(slices, column, new_kv.shape[0], kv_cache.shape[0]) - done
        tokens = jnp.minimum(left, row_tokens)

        # A copy of nothing is still issued and waited for, so there is none.
        @pl.when(tokens > 0)
        def _():
            queue[0, used] = slices[0, column] + done
            queue[1, used] = slices[1, column] + done
            queue[2, used] = tokens
            load(used).start()

        finished = left <= row_tokens
        return (
            jnp.where(finished, column + 1, column),
            jnp.where(finished, 0, done + tokens),
            jnp.where(tokens > 0, used + 1, used),
        )

    def fill_and_drain(state):
        column, done = state
        column, done, used = lax.while_loop(
            lambda s: (s[0] < end) & (s[2] < depth), enqueue, (column, done, jnp.int32(0))
        )
        lax.fori_loop(jnp.int32(0), used, lambda row, _: _pass_on(load(row), store(row)), None)
        lax.fori_loop(jnp.int32(0), used, lambda row, _: store(row).wait(), None)
        return column, done

    # Once, unless slices that are longer than a row make more copies than rows.
    lax.while_loop(lambda s: s[0] < end, fill_and_drain, (first, jnp.int32(0)))


def _pass_on(load: Any, store: Any) -> None:
    load.wait()
    store.start()


def _tokens_to_copy(slices: Any, column: Any, new_tokens: int, cache_tokens: int) -> Any:
    """The length of a slice; 0 where it is empty or out of bounds of either buffer."""
    start, source, length = slices[0, column], slices[1, column], slices[2, column]
    # Subtracted, since a sum could pass 2**31.
    in_bounds = (
        (length > 0)
        & (start >= 0)
        & (source >= 0)
        & (start <= cache_tokens - length)
        & (source <= new_tokens - length)
    )
    return jnp.where(in_bounds, length, 0)


def _pad_head_dim(new_kv: jax.Array, head_dim: int) -> jax.Array:
    """Zeros behind each head vector.

    As integers, since XLA may change a NaN that it pads.  (Its compiler for x86 processors without
    bf16 instructions, on which this kernel is only interpreted, does so all the same.)
    """
    missing = head_dim - new_kv.shape[2]
    if not missing:
        return new_kv
    bits = lax.bitcast_convert_type(new_kv, f"uint{8 * new_kv.dtype.itemsize}")
    bits = jnp.pad(bits, ((0, 0), (0, 0), (0, missing)))
    return lax.bitcast_convert_type(bits, new_kv.dtype)


def _row_bytes(tokens: int, num_combined_heads: int, head_dim: int, dtype: Any) -> int:
    """VMEM bytes of a scratch row, which is tiled as the cache is."""
    heads = padded_num_combined_heads(num_combined_heads, dtype)
    return tokens * heads * padded_head_dim(head_dim) * jnp.dtype(dtype).itemsize


def _choose_depth(asked: Optional[int], row_tokens: int, kv_cache: jax.Array, limit: int) -> int:
    _, heads, head_dim = kv_cache.shape
    if asked is None:
        return num_slices_per_block_for(row_tokens, heads, head_dim, kv_cache.dtype, limit)
    depth = _positive("num_slices_per_block", asked)
    scratch_bytes = depth * _row_bytes(row_tokens, heads, head_dim, kv_cache.dtype)
    if scratch_bytes > limit:
        raise ValueError(
            f"num_slices_per_block={depth} needs {scratch_bytes} bytes of scratch,"
            f" more than vmem_limit_bytes={limit}"
        )
    return depth


def _positive(name: str, value: Any) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be an int, not {value!r}") from None
    if not 1 <= number <= _INT32_MAX:
        raise ValueError(f"{name}={number} must be in [1, {_INT32_MAX}]")
    return number


def _check_arrays(new_kv: Any, slices: Any, kv_cache: Any) -> None:
    for name, array in (("new_kv", new_kv), ("slices", slices), ("kv_cache", kv_cache)):
        if not hasattr(array, "shape") or not hasattr(array, "dtype"):
            raise ValueError(f"{name} must be an array, not {type(array).__name__}")
    for name, array in (("new_kv", new_kv), ("kv_cache", kv_cache)):
        if len(array.shape) != 3:
            raise ValueError(f"{name} must have shape [tokens, C, D], not {_text(array)}")
    if len(slices.shape) != 2 or slices.shape[0] != 3 or slices.dtype != jnp.int32:
        raise ValueError(f"slices must be int32 [3, N], not {_text(slices)}")
    if str(kv_cache.dtype) not in FLOAT_DTYPES + INT_DTYPES:
        known = ", ".join(FLOAT_DTYPES + INT_DTYPES)
        raise ValueError(f"kv_cache is {kv_cache.dtype}; the kernel copies {known}")
    if new_kv.dtype != kv_cache.dtype:
        raise ValueError(f"new_kv is {new_kv.dtype} and kv_cache {kv_cache.dtype}: cast new_kv")


def _check_shapes(new: tuple[int, ...], cache: tuple[int, ...], page_size: int) -> None:
    if 0 in cache[1:]:
        raise ValueError(f"kv_cache has no elements in a token: {list(cache)}")
    if new[1] != cache[1]:
        raise ValueError(f"new_kv has {new[1]} combined heads and kv_cache {cache[1]}")
    if new[2] > cache[2]:
        raise ValueError(f"new_kv has head_dim={new[2]}, more than kv_cache's {cache[2]}")
    if cache[0] % page_size:
        raise ValueError(f"kv_cache has {cache[0]} tokens, not a multiple of page_size={page_size}")
    if max(new[0], cache[0]) > _INT32_MAX:
        raise ValueError("new_kv and kv_cache must have less than 2**31 tokens: slices are int32")


def _check_layout(kv_cache: Any) -> None:
    _, heads, head_dim = kv_cache.shape
    if fills_tiles(heads, head_dim, kv_cache.dtype):
        return
    raise ValueError(
        f"kv_cache has C={heads}, D={head_dim} of {kv_cache.dtype}, which a TPU does not keep in"
        " row-major order by itself, so the whole cache would be copied: make it with"
        f" C={padded_num_combined_heads(heads, kv_cache.dtype)}, D={padded_head_dim(head_dim)},"
        " or give it a row-major layout and pass row_major=True"
    )


def _as_count(value: Any) -> jax.Array:
    """The count as int32 [1]."""
    name = "num_kv_update_slices"
    if isinstance(value, numbers.Integral):
        if abs(int(value)) > _INT32_MAX:
            raise ValueError(f"{name}={value} is no int32")
        return jnp.full((1,), int(value), jnp.int32)
    if not hasattr(value, "shape") or value.shape not in ((), (1,)) or value.dtype != jnp.int32:
        raise ValueError(f"{name} must be int32 [1] or an int, not {_text(value)}")
    return jnp.reshape(value, (1,))


def _text(array: Any) -> str:
    if not hasattr(array, "shape"):
        return repr(array)
    return f"{array.dtype} {list(array.shape)}"
