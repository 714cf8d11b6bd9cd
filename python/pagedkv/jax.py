"""JAX: upstream's ``kv_cache_update``, a custom call on CPUs and CUDA devices, a Pallas kernel
on TPUs.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from . import _core
from ._errors import UnsupportedError
from ._plan import check_slices

__all__ = ["kv_cache_update"]

_TARGET = "pagedkv_kv_cache_update"
_INT32, _INT64 = np.dtype(np.int32), np.dtype(np.int64)
_VMEM_LIMIT_BYTES = 40 * 1024 * 1024

jax.ffi.register_ffi_target(_TARGET, _core.xla_handler(), platform="cpu", api_version=1)
# Kept by jaxlib until a CUDA plug-in is loaded, if one ever is.
jax.ffi.register_ffi_target(
    _TARGET, {"initialize": _core.xla_handler_cuda(), "execute": _core.xla_handler_cuda()},
    platform="CUDA", api_version=1)


def _update_custom_call(new_kv: Any, slices: Any, kv_cache: Any, count: Any) -> Any:
    call = jax.ffi.ffi_call(
        _TARGET,
        jax.ShapeDtypeStruct(kv_cache.shape, kv_cache.dtype),
        input_output_aliases={2: 0},
    )
    return call(new_kv, slices, kv_cache, count)


def _update_tpu(
    new_kv: Any, slices: Any, kv_cache: Any, count: Any, *, page_size: int,
    num_slices_per_block: int | None, vmem_limit_bytes: int | None,
) -> Any:
    from . import tpu

    return tpu.kv_cache_update(
        new_kv, slices, kv_cache, count, page_size=page_size,
        num_slices_per_block=num_slices_per_block,
        vmem_limit_bytes=_VMEM_LIMIT_BYTES if vmem_limit_bytes is None else vmem_limit_bytes)


def _platform(kv_cache: Any, mesh: Mesh | None) -> str:
    """Where the call will run: the mesh's devices, else the cache's, else JAX's default."""
    if mesh is not None:
        return mesh.devices.flat[0].platform
    if isinstance(kv_cache, jax.Array) and not isinstance(kv_cache, jax.core.Tracer):
        return next(iter(kv_cache.devices())).platform
    return jax.default_backend()


@functools.partial(
    jax.jit,
    donate_argnames=("kv_cache",),
    static_argnames=("page_size", "num_slices_per_block", "mesh", "kv_cache_pspec",
                     "vmem_limit_bytes", "platform"),
)
def _update(
    new_kv: Any, slices: Any, kv_cache: Any, count: Any, *, page_size: int,
    num_slices_per_block: int | None, mesh: Mesh | None, kv_cache_pspec: PartitionSpec | None,
    vmem_limit_bytes: int | None, platform: str,
) -> Any:
    if platform in ("cpu", "cuda", "gpu"):
        body: Any = _update_custom_call
    elif platform == "tpu":
        body = functools.partial(
            _update_tpu, page_size=page_size, num_slices_per_block=num_slices_per_block,
            vmem_limit_bytes=vmem_limit_bytes)
    else:
        raise UnsupportedError(f"kv_cache: is on {platform}; this release writes on cpu, cuda and "
                               "tpu")
    if mesh is not None:
        whole = PartitionSpec()
        body = jax.shard_map(
            body, mesh=mesh, in_specs=(kv_cache_pspec, whole, kv_cache_pspec, whole),
            out_specs=kv_cache_pspec, check_vma=False)
    return body(new_kv, slices, kv_cache, count)


def _check_arrays(new_kv: Any, slices: Any, kv_cache: Any) -> None:
    for name, array in (("new_kv", new_kv), ("slices", slices)):
        if not hasattr(array, "shape") or not hasattr(array, "dtype"):
            raise ValueError(f"{name}: is no array, but {type(array).__name__}")
    # Of another library's array JAX would write a copy, silently.
    if not isinstance(kv_cache, jax.Array):
        raise ValueError(f"kv_cache: is no jax.Array, but {type(kv_cache).__name__}")


def _as_count(value: Any) -> Any:
    """n as int32 [1]; what would not keep its value is refused."""
    name = "num_kv_update_slices"
    if isinstance(value, (int, np.integer)):
        value = np.array([value], object)
    elif not hasattr(value, "shape") or not hasattr(value, "dtype"):
        raise ValueError(f"{name}: is neither an int nor an array, but {type(value).__name__}")
    elif value.dtype not in (_INT32, _INT64):
        raise ValueError(f"{name}: holds {value.dtype}, not int32")
    if value.dtype == _INT32:
        return value  # jit takes NumPy's arrays faster than jnp.asarray does
    if isinstance(value, jax.Array):
        return value.astype(_INT32)
    # Outside int32 it is outside every range.
    return np.clip(value, -2**31, 2**31 - 1).astype(np.int32)


def _check_shapes(new_kv: Any, slices: Any, kv_cache: Any, count: Any) -> None:
    if new_kv.ndim != 3:
        raise ValueError(f"new_kv: has shape {new_kv.shape}, not [tokens, heads, head_dim]")
    if kv_cache.ndim != 3:
        raise ValueError(f"kv_cache: has shape {kv_cache.shape}, not "
                         "[pages * page_size, heads, head_dim]")
    if new_kv.shape[1:] != kv_cache.shape[1:]:
        raise ValueError(f"new_kv: has heads of {new_kv.shape[1:]}, but kv_cache of "
                         f"{kv_cache.shape[1:]}")
    if new_kv.dtype != kv_cache.dtype:
        raise ValueError(f"new_kv: holds {new_kv.dtype}, but kv_cache holds {kv_cache.dtype}")
    if slices.ndim != 2 or slices.shape[0] != 3 or slices.dtype != _INT32:
        raise ValueError(f"slices: is {slices.dtype}{list(slices.shape)}, not int32[3, N]")
    if count.shape != (1,):
        raise ValueError(f"num_kv_update_slices: has shape {count.shape}, not (1,)")


def _validate(new_kv: Any, slices: Any, kv_cache: Any, count: Any, page_size: int) -> None:
    if isinstance(slices, jax.core.Tracer) or isinstance(count, jax.core.Tracer):
        raise ValueError("dynamic_validate_inputs: looks at the values of slices and "
                         "num_kv_update_slices, which a traced call does not have")
    check_slices(np.asarray(slices), int(count[0]), num_tokens=new_kv.shape[0],
                 num_slots=kv_cache.shape[0], page_size=page_size, strict=True)


def kv_cache_update(
    new_kv: Any,
    slices: Any,
    kv_cache: Any,
    num_kv_update_slices: Any,
    *,
    page_size: int = 32,
    num_slices_per_block: int | None = None,
    mesh: Mesh | None = None,
    kv_cache_pspec: PartitionSpec | None = None,
    dynamic_validate_inputs: bool = False,
    vmem_limit_bytes: int | None = None,
) -> jax.Array:
    """Write new keys and values into the pages of a cache; kv_cache is donated.

    Args:
        new_kv: ``[T, C, D]``, K0, V0, K1, V1, ...
        slices: int32 ``[3, N]``: kv_cache_start, new_kv_start, slice_len, in tokens.
        kv_cache: ``[pages * page_size, C, D]``, the dtype of new_kv. Under an outer ``jit``
            donate it there, or XLA copies the whole cache first.
        num_kv_update_slices: int32 ``[1]`` or an int. Traced: one compiled program serves
            every count.
        page_size: tokens a page.
        num_slices_per_block: TPU: copies in flight; None: as many as the scratch memory has
            room for.
        mesh, kv_cache_pspec: shard over the devices of a mesh by KV head, as
            ``PartitionSpec(None, "x", None)``.
        dynamic_validate_inputs: refuse what upstream's validator refuses. Looks at values, so
            not for a traced call.
        vmem_limit_bytes: TPU: scratch memory, 40 MiB unless given.

    Returns:
        The cache, in the buffer of kv_cache.

    Raises:
        ValueError: shapes, dtypes, a mesh without kv_cache_pspec, and what the validator finds.
        ValueError or jax.errors.JaxRuntimeError: on CPUs, n or a slice outside its bounds, when
            the program runs; nothing was written then. CUDA devices and TPUs skip such slices,
            and CUDA devices write nothing where n is out of bounds.
        UnsupportedError: another platform. jax.errors.JaxRuntimeError: on CUDA devices, a build
            without CUDA.
    """
    _check_arrays(new_kv, slices, kv_cache)
    count = _as_count(num_kv_update_slices)
    _check_shapes(new_kv, slices, kv_cache, count)
    if mesh is not None and kv_cache_pspec is None:
        raise ValueError("kv_cache_pspec: must be given with a mesh")
    if dynamic_validate_inputs:
        _validate(new_kv, slices, kv_cache, count, page_size)
    return _update(
        new_kv, slices, kv_cache, count, page_size=page_size,
        num_slices_per_block=num_slices_per_block, mesh=mesh, kv_cache_pspec=kv_cache_pspec,
        vmem_limit_bytes=vmem_limit_bytes, platform=_platform(kv_cache, mesh))
