"""PyTorch operators for CPU and CUDA tensors, registered when this module is imported.

=====================================  =====================================================
``torch.ops.pagedkv.…``
=====================================  =====================================================
``kv_cache_update_``                   the operator: writes kv_cache in place, returns nothing
``kv_cache_update_separate_``          the same for K and V apart
``kv_cache_update_status_``            both, with a status word for what a device cannot raise
``kv_cache_update_op``                 upstream's call on top of it: returns kv_cache
``plan_``                              CUDA only: the slices of a step, by the device itself
``plan_slot_mapping_``                 CUDA only: the same from a slot for every token
=====================================  =====================================================

The mutation is in the schemas, so ``torch.compile`` keeps it in the graph without a break and
without a copy of the cache. There is no gradient: a cache is written under ``no_grad``.

On CUDA tensors the kernel is put on the current stream and the call returns: nothing is read,
allocated or waited for, so it can be captured in a graph. Slices and count are read when the
kernel runs: one captured graph serves every count. A device is opened by the first call, which
must not be under capture: call :func:`open_cuda` before.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _core
from ._errors import InvalidError

__all__ = ["FAULT_COUNT", "FAULT_SCALE", "FAULT_SLICES", "kv_cache_update",
           "kv_cache_update_separate", "open_cuda", "plan_", "plan_slot_mapping_"]

# What a status word holds after a fault; 0: none.
FAULT_COUNT = 1 << 30
FAULT_SCALE = 1 << 29
FAULT_SLICES = FAULT_SCALE - 1

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
    "kv_cache_update_status_(Tensor(a!) key_cache, Tensor(b!)? value_cache, Tensor key, "
    "Tensor? value, Tensor slot_mapping, Tensor num_kv_update_slices, int page_size, "
    "Tensor(c!) status_word) -> ()",
    tags=_TAGS,
)
_library.define(
    "kv_cache_update_op(Tensor kv, Tensor slot_mapping, Tensor kv_cache, "
    "Tensor num_kv_update_slices, int page_size, int num_slices_per_block) -> Tensor"
)
_library.define(
    "plan_(Tensor context_lens, Tensor query_start_loc, Tensor block_table, Tensor num_seqs, "
    "Tensor(a!) slices, Tensor(b!) num_slices, Tensor(c!)? status_word, int page_size, "
    "int num_pages, int max_slice_tokens) -> ()"
)
_library.define(
    "plan_slot_mapping_(Tensor slot_mapping, Tensor? num_tokens, Tensor? query_start_loc, "
    "Tensor? num_seqs, Tensor(a!) slices, Tensor(b!) num_slices, Tensor(c!)? status_word, "
    "int page_size, int num_slots, int max_slice_tokens) -> ()"
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


def _update_status_cpu(
    key_cache: Tensor, value_cache: Tensor | None, key: Tensor, value: Tensor | None,
    slot_mapping: Tensor, num_kv_update_slices: Tensor, page_size: int, status_word: Tensor,
) -> None:
    del status_word  # what it would say is raised
    _check_planes(value_cache, value)
    _core.move(False, key, value, slot_mapping, key_cache, value_cache, num_kv_update_slices,
               page_size, 0)


def _check_planes(value_cache: Tensor | None, value: Tensor | None) -> None:
    if (value_cache is None) != (value is None):
        raise InvalidError("value, value_cache: one is given without the other")


def _update_cuda(
    kv_cache: Tensor, kv: Tensor, slot_mapping: Tensor, num_kv_update_slices: Tensor,
    page_size: int, num_slices_per_block: int,
) -> None:
    del num_slices_per_block
    _core.cuda_update(kv, None, slot_mapping, kv_cache, None, num_kv_update_slices, page_size,
                      None, *_place(kv_cache))


def _update_separate_cuda(
    key_cache: Tensor, value_cache: Tensor, key: Tensor, value: Tensor, slot_mapping: Tensor,
    num_kv_update_slices: Tensor, page_size: int,
) -> None:
    _core.cuda_update(key, value, slot_mapping, key_cache, value_cache, num_kv_update_slices,
                      page_size, None, *_place(key_cache))


def _update_status_cuda(
    key_cache: Tensor, value_cache: Tensor | None, key: Tensor, value: Tensor | None,
    slot_mapping: Tensor, num_kv_update_slices: Tensor, page_size: int, status_word: Tensor,
) -> None:
    _check_planes(value_cache, value)
    _core.cuda_update(key, value, slot_mapping, key_cache, value_cache, num_kv_update_slices,
                      page_size, status_word, *_place(key_cache))


def _plan_cuda(
    context_lens: Tensor, query_start_loc: Tensor, block_table: Tensor, num_seqs: Tensor,
    slices: Tensor, num_slices: Tensor, status_word: Tensor | None, page_size: int,
    num_pages: int, max_slice_tokens: int,
) -> None:
    _core.cuda_plan(context_lens, query_start_loc, block_table, num_seqs, page_size, num_pages,
                    max_slice_tokens, slices, num_slices, status_word,
                    *_place(slices, "slices"))


def _plan_slots_cuda(
    slot_mapping: Tensor, num_tokens: Tensor | None, query_start_loc: Tensor | None,
    num_seqs: Tensor | None, slices: Tensor, num_slices: Tensor, status_word: Tensor | None,
    page_size: int, num_slots: int, max_slice_tokens: int,
) -> None:
    _core.cuda_plan_slots(slot_mapping, num_tokens, query_start_loc, num_seqs, page_size,
                          num_slots, max_slice_tokens, slices, num_slices, status_word,
                          *_place(slices, "slices"))


def _place(written: Tensor, name: str = "the cache") -> tuple[int, int]:
    """A CUDA tensor's device and its current stream, which is the one under capture if any is."""
    if not written.is_cuda:
        raise InvalidError(f"{name}: is on {written.device}, but another tensor on a CUDA device")
    device = written.get_device()
    return device, torch.cuda.current_stream(device).cuda_stream


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
_library.impl("kv_cache_update_status_", _update_status_cpu, "CPU")
_library.impl("kv_cache_update_status_", _update_status_cuda, "CUDA")
_library.impl("plan_", _plan_cuda, "CUDA")
_library.impl("plan_slot_mapping_", _plan_slots_cuda, "CUDA")
# Taken apart before anything looks at aliases: what remains is the operator that declares them.
_library.impl("kv_cache_update_op", _update_op, "CompositeImplicitAutograd")
torch.library.register_fake("pagedkv::kv_cache_update_", _fake, lib=_library)
torch.library.register_fake("pagedkv::kv_cache_update_separate_", _fake, lib=_library)
torch.library.register_fake("pagedkv::kv_cache_update_status_", _fake, lib=_library)
torch.library.register_fake("pagedkv::plan_", _fake, lib=_library)
torch.library.register_fake("pagedkv::plan_slot_mapping_", _fake, lib=_library)


def open_cuda(device: int | str | torch.device = 0) -> None:
    """Make a CUDA device ready: once a process and device, before anything is captured.

    The first call of an operator does it too. It loads code, which a capture does not allow,
    and takes up to a second. The device stays open for the life of the process.

    Args:
        device: an ordinal, or as in ``torch.device("cuda:1")``; ``"cuda"`` is the current one.

    Raises:
        UnsupportedError: no driver, or a build without CUDA. InvalidError: no such device.
        DeviceError: the driver failed.
    """
    if not isinstance(device, int):
        place = torch.device(device)
        if place.type != "cuda":
            raise InvalidError(f"device: is {place}, not a CUDA device")
        device = torch.cuda.current_device() if place.index is None else place.index
    _core.cuda_open(device)


def kv_cache_update(
    kv_cache: Tensor, kv: Tensor, slot_mapping: Tensor, num_kv_update_slices: Tensor, *,
    page_size: int, num_slices_per_block: int = 0, status_word: Tensor | None = None,
) -> None:
    """``torch.ops.pagedkv.kv_cache_update_``, with names and types.

    Args:
        kv_cache: ``[pages * page_size, C, D]``, written in place; any strides, but the last
            axis is contiguous.
        kv: ``[T, C, D]``, the same dtype, or one that :func:`pagedkv.kv_cache_update` converts
            from; there are no scales here.
        slot_mapping: int32 ``[3, N]``, the slices of :func:`pagedkv.plan`.
        num_kv_update_slices: int32 ``[1]``, read when the operator runs, and on a CUDA device
            by the kernel: all tensors are on the cache's device.
        page_size: tokens a page.
        num_slices_per_block: not used on CPUs and CUDA devices.
        status_word: int32 ``[1]`` that the caller has set to 0, for CUDA tensors; None: faults
            do not show. A count out of bounds sets FAULT_COUNT; slices out of bounds are
            skipped and counted in the bits of FAULT_SLICES.

    Raises:
        What :func:`pagedkv.kv_cache_update` raises; nothing was written then. CUDA tensors:
        what the host can see, dtypes, shapes, strides; and what :func:`open_cuda` raises.
    """
    if status_word is not None:
        torch.ops.pagedkv.kv_cache_update_status_(
            kv_cache, None, kv, None, slot_mapping, num_kv_update_slices, page_size, status_word)
        return
    torch.ops.pagedkv.kv_cache_update_(kv_cache, kv, slot_mapping, num_kv_update_slices,
                                       page_size, num_slices_per_block)


def kv_cache_update_separate(
    key_cache: Tensor, value_cache: Tensor, key: Tensor, value: Tensor, slot_mapping: Tensor,
    num_kv_update_slices: Tensor, *, page_size: int, status_word: Tensor | None = None,
) -> None:
    """``torch.ops.pagedkv.kv_cache_update_separate_``: K and V apart, in one call.

    Args:
        key_cache, value_cache: ``[pages * page_size, H, D]`` or ``[pages, page_size, H, D]``.
        key, value: ``[T, H, D]``; views into a fused QKV output will do.
        The rest as :func:`kv_cache_update`.
    """
    if status_word is not None:
        torch.ops.pagedkv.kv_cache_update_status_(
            key_cache, value_cache, key, value, slot_mapping, num_kv_update_slices, page_size,
            status_word)
        return
    torch.ops.pagedkv.kv_cache_update_separate_(key_cache, value_cache, key, value, slot_mapping,
                                                num_kv_update_slices, page_size)


def plan_(
    context_lens: Tensor, query_start_loc: Tensor, block_table: Tensor, num_seqs: Tensor, *,
    slices: Tensor, num_slices: Tensor, page_size: int, num_pages: int = 0,
    max_slice_tokens: int | None = None, status_word: Tensor | None = None,
) -> None:
    """The slices of a step, made by a CUDA device: the host need not know the lengths.

    Args:
        context_lens: int32 ``[R]``, tokens computed + scheduled. R is the most requests.
        query_start_loc: int32 ``[R + 1]``, rising from 0: scheduled is the difference.
        block_table: int32 ``[R, width]``; rows may lie further apart.
        num_seqs: int32 ``[1]``, how many requests are real.
        slices: int32 ``[3, N]``, written. num_slices: int32 ``[1]``, written: n, or -1 where the
            batch is wrong or N too small, with which an update writes nothing.
        page_size: tokens a page. num_pages: pages must lie below; 0: not checked.
        max_slice_tokens: None: a slice ends at the end of a page; 0: neighbours of a request are
            joined. No other bound.
        status_word: int32 ``[1]`` that gets FAULT_COUNT where num_slices is -1, or None.
    """
    torch.ops.pagedkv.plan_(context_lens, query_start_loc, block_table, num_seqs, slices,
                            num_slices, status_word, page_size, num_pages,
                            page_size if max_slice_tokens is None else max_slice_tokens)


def plan_slot_mapping_(
    slot_mapping: Tensor, *, slices: Tensor, num_slices: Tensor, page_size: int,
    num_slots: int = 0, max_slice_tokens: int | None = None, num_tokens: Tensor | None = None,
    query_start_loc: Tensor | None = None, num_seqs: Tensor | None = None,
    status_word: Tensor | None = None,
) -> None:
    """The same from a slot for every token, int32 or int64 ``[T]``, -1 for none.

    Args:
        num_slots: slots must lie below; 0: not checked.
        num_tokens: int32 ``[1]``, how many slots are real; None: all.
        query_start_loc, num_seqs: no slice crosses from one request to the next; None: it may.
        The rest as :func:`plan_`.
    """
    torch.ops.pagedkv.plan_slot_mapping_(
        slot_mapping, num_tokens, query_start_loc, num_seqs, slices, num_slices, status_word,
        page_size, num_slots, page_size if max_slice_tokens is None else max_slice_tokens)
