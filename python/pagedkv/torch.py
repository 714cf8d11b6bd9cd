"""PyTorch operators, registered when this module is imported.

=====================================  =====================================================
``torch.ops.pagedkv.…``
=====================================  =====================================================
``kv_cache_update_``                   the operator: writes kv_cache in place, returns nothing
``kv_cache_update_separate_``          the same for K and V apart
``kv_cache_update_op``                 upstream's call on top of it: returns kv_cache
=====================================  =====================================================

The mutation is in the schemas, so ``torch.compile`` keeps it in the graph without a break and
without a copy of the cache. There is no gradient: a cache is written under ``no_grad``.
CUDA tensors reach the same functions; this release has no CUDA backend and says so.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _core
from ._errors import InvalidError, UnsupportedError

__all__ = ["kv_cache_update", "kv_cache_update_separate"]

# Kept for ever: its end would take the operators back.
_library = torch.library.Library("pagedkv", "FRAGMENT")

# Inductor must not lay out a cache anew.
_TAGS = (torch.Tag.needs_exact_strides,)

_library.define(
    "kv_cache_update_(Tensor(a!) kv_cache, Tensor kv, Tensor slot_mapping, "
    "Tensor num_kv_update_slices, int page_size, int num_slices_per_block) -> ()",
    tags=_TAGS,
)
_library.define(
    "kv_cache_update_separate_(Tensor(a!) key_cache, Tensor(b!) value_cache, Tensor key, "
    "Tensor value, Tensor slot_mapping, Tensor num_kv_update_slices, int page_size) -> ()",
    tags=_TAGS,
)
_library.define(
    "kv_cache_update_op(Tensor kv, Tensor slot_mapping, Tensor kv_cache, "
    "Tensor num_kv_update_slices, int page_size, int num_slices_per_block) -> Tensor"
)


def _update_cpu(
    kv_cache: Tensor, kv: Tensor, slot_mapping: Tensor, num_kv_update_slices: Tensor,
    page_size: int, num_slices_per_block: int,
) -> None:
    del num_slices_per_block
    _core.move(False, kv, None, slot_mapping, kv_cache, None, num_kv_update_slices, page_size, 0)


def _update_separate_cpu(
    key_cache: Tensor, value_cache: Tensor, key: Tensor, value: Tensor, slot_mapping: Tensor,
    num_kv_update_slices: Tensor, page_size: int,
) -> None:
    _core.move(False, key, value, slot_mapping, key_cache, value_cache, num_kv_update_slices,
               page_size, 0)


def _launch_cuda(*tensors: Tensor) -> None:
    """Where the CUDA backend's call will stand: the pointers and the current stream are ready."""
    device = tensors[0].device
    for tensor in tensors:
        if not tensor.is_cuda or tensor.device != device:
            raise InvalidError(f"the cache is on {device}, but another tensor on {tensor.device}")
    stream = torch.cuda.current_stream(device).cuda_stream
    pointers = [tensor.data_ptr() for tensor in tensors]
    raise UnsupportedError(
        f"{len(pointers)} tensors on {device}, stream {stream:#x}: this release has no CUDA "
        "backend")


def _update_cuda(
    kv_cache: Tensor, kv: Tensor, slot_mapping: Tensor, num_kv_update_slices: Tensor,
    page_size: int, num_slices_per_block: int,
) -> None:
    _launch_cuda(kv_cache, kv, slot_mapping, num_kv_update_slices)


def _update_separate_cuda(
    key_cache: Tensor, value_cache: Tensor, key: Tensor, value: Tensor, slot_mapping: Tensor,
    num_kv_update_slices: Tensor, page_size: int,
) -> None:
    _launch_cuda(key_cache, value_cache, key, value, slot_mapping, num_kv_update_slices)


def _update_op(
    kv: Tensor, slot_mapping: Tensor, kv_cache: Tensor, num_kv_update_slices: Tensor,
    page_size: int, num_slices_per_block: int,
) -> Tensor:
    torch.ops.pagedkv.kv_cache_update_(kv_cache, kv, slot_mapping, num_kv_update_slices,
                                       page_size, num_slices_per_block)
    return kv_cache


def _fake(*arguments: object) -> None:
    """The fake kernels: shapes and dtypes stay what they are.

    Real calls land here too when one tensor is a meta tensor; they must not pass for done.
    """
    tensors = [a for a in arguments if isinstance(a, Tensor)]
    devices = {t.device for t in tensors}
    if len(devices) > 1:
        raise InvalidError("kv_cache, kv, slot_mapping, num_kv_update_slices: are on different "
                           f"devices, {[str(t.device) for t in tensors]}")


_library.impl("kv_cache_update_", _update_cpu, "CPU")
_library.impl("kv_cache_update_", _update_cuda, "CUDA")
_library.impl("kv_cache_update_separate_", _update_separate_cpu, "CPU")
_library.impl("kv_cache_update_separate_", _update_separate_cuda, "CUDA")
# Taken apart before anything looks at aliases: what remains is the operator that declares them.
_library.impl("kv_cache_update_op", _update_op, "CompositeImplicitAutograd")
torch.library.register_fake("pagedkv::kv_cache_update_", _fake, lib=_library)
torch.library.register_fake("pagedkv::kv_cache_update_separate_", _fake, lib=_library)


def kv_cache_update(
    kv_cache: Tensor, kv: Tensor, slot_mapping: Tensor, num_kv_update_slices: Tensor, *,
    page_size: int, num_slices_per_block: int = 0,
) -> None:
    """``torch.ops.pagedkv.kv_cache_update_``, with names and types.

    Args:
        kv_cache: ``[pages * page_size, C, D]``, written in place; any strides, but the last
            axis is contiguous.
        kv: ``[T, C, D]``, the same dtype, or one that :func:`pagedkv.kv_cache_update` converts
            from; there are no scales here.
        slot_mapping: int32 ``[3, N]``, the slices of :func:`pagedkv.plan`.
        num_kv_update_slices: int32 ``[1]``, read when the operator runs.
        page_size: tokens a page. num_slices_per_block: not used on CPUs.

    Raises:
        What :func:`pagedkv.kv_cache_update` raises; nothing was written then.
    """
    torch.ops.pagedkv.kv_cache_update_(kv_cache, kv, slot_mapping, num_kv_update_slices,
                                       page_size, num_slices_per_block)


def kv_cache_update_separate(
    key_cache: Tensor, value_cache: Tensor, key: Tensor, value: Tensor, slot_mapping: Tensor,
    num_kv_update_slices: Tensor, *, page_size: int,
) -> None:
    """``torch.ops.pagedkv.kv_cache_update_separate_``: K and V apart, in one call.

    Args:
        key_cache, value_cache: ``[pages * page_size, H, D]`` or ``[pages, page_size, H, D]``.
        key, value: ``[T, H, D]``; views into a fused QKV output will do.
        The rest as :func:`kv_cache_update`.
    """
    torch.ops.pagedkv.kv_cache_update_separate_(key_cache, value_cache, key, value, slot_mapping,
                                                num_kv_update_slices, page_size)
