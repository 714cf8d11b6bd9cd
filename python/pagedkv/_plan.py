"""Plans: from requests and their pages, or from slots, to slices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _core
from ._errors import InvalidError

Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Plan:
    """The slices of one step; every layer uses the same plan.

    Attributes:
        slices: int32 ``[3, N]``: kv_cache_start, new_kv_start, slice_len. Columns from
            num_slices on are zero.
        num_slices: n, how many columns are real.
        num_tokens: T, the rows of new K/V that the plan covers.
    """

    slices: Int32Array
    num_slices: int
    num_tokens: int

    def __iter__(self) -> Iterator[Any]:
        """``slices, n = plan`` unpacks what an update takes."""
        return iter((self.slices, self.num_slices))


@dataclass(frozen=True)
class StepPlan:
    """What attention and the update need of one step (upstream's seven fields).

    Attributes:
        slot_mapping: int32 ``[3, N]``, the slices; zero from num_kv_update_slices on.
        block_tables: int32 ``[max_num_reqs, width]``.
        context_lens: int32 ``[max_num_reqs]``, computed + scheduled.
        query_start_loc: int32 ``[max_num_reqs + 1]``, 1 behind the last request's end.
        num_seqs: int32 ``[1]``.
        num_kv_update_slices: int32 ``[1]``.
        num_slices_per_kv_cache_update_block: passed through.
        num_tokens: T. token_bucket: T padded.
    """

    slot_mapping: Int32Array
    block_tables: Int32Array
    context_lens: Int32Array
    query_start_loc: Int32Array
    num_seqs: Int32Array
    num_kv_update_slices: Int32Array
    num_slices_per_kv_cache_update_block: int
    num_tokens: int
    token_bucket: int


def _int32(values: Any, name: str) -> Int32Array:
    """An int32 array of numbers that a caller may give as a list or as wider integers."""
    array = np.asarray(values)
    if array.dtype == np.int32:
        return np.ascontiguousarray(array)
    if array.size == 0:
        return np.zeros(array.shape, np.int32)
    if array.dtype.kind not in "iu":
        raise InvalidError(f"{name}: holds {array.dtype}, not integers")
    info = np.iinfo(np.int32)
    if array.min() < info.min or array.max() > info.max:
        raise InvalidError(f"{name}: holds numbers that do not fit int32")
    return array.astype(np.int32)


def _columns(capacity: int) -> Int32Array:
    if capacity < 0:
        raise InvalidError(f"capacity: is {capacity}, not 0 or more")
    return np.zeros((3, capacity), np.int32)


def _cut(out: Int32Array, n: int, capacity: int | None) -> Int32Array:
    """The columns in use, where the caller asked for no number of them."""
    return out if capacity is not None or n == out.shape[1] else np.ascontiguousarray(out[:, :n])


def _csr(pages: list[Any]) -> tuple[Int32Array, Int32Array]:
    flat = [_int32(p, "pages") for p in pages]
    for request, p in enumerate(flat):
        if p.ndim != 1:
            raise InvalidError(f"pages: those of request {request} are no list of numbers",
                               index=request)
    indptr = np.zeros(len(pages) + 1, np.int32)
    np.cumsum([len(p) for p in flat], out=indptr[1:])
    return indptr, np.concatenate(flat) if flat else np.zeros(0, np.int32)


def _tables(pages: Any, n_requests: int) -> tuple[Any, Any, Any]:
    """block_table, indptr, indices, of which one form is None."""
    if not isinstance(pages, tuple) and hasattr(pages, "__len__") and len(pages) != n_requests:
        raise InvalidError(f"pages: is of {len(pages)} requests, but computed of {n_requests}")
    if isinstance(pages, tuple) and len(pages) == 2:
        return None, _int32(pages[0], "indptr"), _int32(pages[1], "indices")
    if isinstance(pages, list):
        return (None, *_csr(pages))
    table = np.asarray(pages)
    if table.ndim != 2:
        raise InvalidError("pages: is neither a list of lists, nor [requests, pages], nor a "
                           "pair (indptr, indices)")
    return _int32(table, "pages"), None, None


def plan(
    computed: Any,
    scheduled: Any,
    pages: Any,
    *,
    page_size: int,
    max_slice_tokens: int | None = None,
    num_pages: int = 0,
    capacity: int | None = None,
) -> Plan:
    """The slices of a step: one for each page that each request touches, in order.

    Args:
        computed: ``[R]``, tokens that each request has in the cache already.
        scheduled: ``[R]``, tokens that this step writes.
        pages: each request's pages, in order: a list of lists, an int32 array
            ``[R, width]``, or a pair (indptr, indices).
        page_size: tokens a page.
        max_slice_tokens: None joins no pages; 0 joins neighbours of one request without
            limit; another number up to so many tokens.
        num_pages: pages of the cache; page numbers must lie below it. 0: not checked.
        capacity: N, columns of the result. None: as many as there are slices.

    Returns:
        A :class:`Plan`.

    Raises:
        RangeError: ``index`` names the request: negative counts, a block table that is too
            short, a page outside the cache, or more slices than capacity.

    >>> plan([0, 10], [10, 30], [[100], [200, 201, 202]], page_size=16).slices.T.tolist()
    [[1600, 0, 10], [3210, 10, 6], [3216, 16, 16], [3232, 32, 8]]
    """
    done, now = _int32(computed, "computed"), _int32(scheduled, "scheduled")
    table, indptr, indices = _tables(pages, len(done))
    bound = _core.plan_bound(done, now, page_size) if capacity is None else capacity
    out = _columns(bound)
    most = page_size if max_slice_tokens is None else max_slice_tokens
    n, tokens = _core.plan(done, now, table, indptr, indices, page_size, num_pages, most, out)
    return Plan(_cut(out, n, capacity), n, tokens)


def plan_slot_mapping(
    slot_mapping: Any,
    *,
    page_size: int,
    max_slice_tokens: int | None = None,
    query_start_loc: Any = None,
    num_slots: int = 0,
    capacity: int | None = None,
) -> Plan:
    """Slices from a slot for every token, as vLLM on GPUs, SGLang and FlashInfer pass it.

    Args:
        slot_mapping: int32 or int64 ``[T]``; -1: this token is not written.
        page_size, max_slice_tokens, capacity: as :func:`plan`.
        query_start_loc: int32 ``[R + 1]``, first token of each request, and the end: no
            slice crosses one of them.
        num_slots: slots of the cache; slots must lie below it. 0: not checked.

    Returns:
        A :class:`Plan` with num_tokens = T.

    Raises:
        RangeError: ``index`` names the token.
    """
    slots = np.ascontiguousarray(slot_mapping)
    if slots.size == 0 and slots.ndim == 1:
        slots = slots.astype(np.int32)  # an empty list is one of floats to NumPy
    if slots.dtype not in (np.int32, np.int64):
        raise InvalidError(f"slot_mapping: holds {slots.dtype}, not int32 or int64")
    starts = None if query_start_loc is None else _int32(query_start_loc, "query_start_loc")
    if starts is not None and starts.size == 0:
        raise InvalidError("query_start_loc: is empty, not [requests + 1]")
    out = _columns(len(slots) if capacity is None else capacity)
    most = page_size if max_slice_tokens is None else max_slice_tokens
    n = _core.plan_slots(slots, page_size, num_slots, most, starts, out)
    return Plan(_cut(out, n, capacity), n, len(slots))


def plan_step(
    computed: Any,
    scheduled: Any,
    pages: Any,
    *,
    page_size: int,
    max_num_reqs: int,
    max_num_batched_tokens: int,
    block_tables_width: int,
    bucket_gap_tokens: int = 0,
    max_slice_tokens: int | None = None,
    num_slices_per_block: int = 64,
    num_pages: int = 0,
) -> StepPlan:
    """:func:`plan` and the rest of a step's metadata, padded to shapes that do not change.

    Args:
        max_num_reqs, max_num_batched_tokens: what a step may grow to.
        block_tables_width: pages of the longest request.
        bucket_gap_tokens: 0: token buckets double; else see ``sizing.token_buckets``.

    Returns:
        A :class:`StepPlan`; N depends on the token bucket only.

    Raises:
        RangeError: as :func:`plan`, and for more requests, tokens or pages than announced.
    """
    done, now = _int32(computed, "computed"), _int32(scheduled, "scheduled")
    table, indptr, indices = _tables(pages, len(done))
    largest = _core.token_bucket(max_num_batched_tokens, 16, max_num_batched_tokens,
                                 bucket_gap_tokens)
    slices = np.zeros((3, _core.padded_num_slices(max_num_reqs, largest, page_size)), np.int32)
    outputs = (
        np.zeros((max_num_reqs, block_tables_width), np.int32),
        np.zeros(max_num_reqs, np.int32),
        np.zeros(max_num_reqs + 1, np.int32),
        np.zeros(1, np.int32),
        np.zeros(1, np.int32),
    )
    most = page_size if max_slice_tokens is None else max_slice_tokens
    tokens, bucket, padded = _core.plan_step(
        done, now, table, indptr, indices, page_size, num_pages, most, max_num_reqs,
        max_num_batched_tokens, bucket_gap_tokens, num_slices_per_block, slices, outputs)
    tables, lens, starts, seqs, n = outputs
    return StepPlan(np.ascontiguousarray(slices[:, :padded]), tables, lens, starts, seqs, n,
                    num_slices_per_block, tokens, bucket)


def check_slices(
    slices: Any, num_slices: Any, *, num_tokens: int, num_slots: int, page_size: int,
    strict: bool = False,
) -> int:
    """May these slices be used with T = num_tokens rows and a cache of num_slots slots?

    Args:
        slices: int32 ``[3, N]``; num_slices: n, an int or an array of one element.
        page_size: looked at in strict mode only, which refuses what upstream's validator does.

    Returns:
        How many tokens they write.

    Raises:
        RangeError, StrictError: ``index`` names the slice.
    """
    return _core.check_slices(slices, num_slices, num_tokens, num_slots, page_size, strict)
