"""Plans, slot mappings, step metadata and sizing rules, against the model and given vectors."""

from __future__ import annotations

import sys
from typing import Any

import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pagedkv
import pytest
import torch
from hypothesis import given, settings
from pagedkv import InvalidError, RangeError, _core, sizing

import model

# computed, scheduled, pages, exact slices, merged slices; page size 16.
VECTORS: list[tuple[list[int], list[int], list[list[int]], list[list[int]], list[list[int]]]] = [
    ([0, 10], [10, 30], [[100], [200, 201, 202]],
     [[1600, 0, 10], [3210, 10, 6], [3216, 16, 16], [3232, 32, 8]],
     [[1600, 0, 10], [3210, 10, 30]]),
    ([5], [20], [[50, 51]],
     [[805, 0, 11], [816, 11, 9]],
     [[805, 0, 20]]),
    ([0, 30, 20], [35, 1, 13], [[7, 2, 9], [4, 11], [5, 1, 3]],
     [[112, 0, 16], [32, 16, 16], [144, 32, 3], [190, 35, 1], [20, 36, 12], [48, 48, 1]],
     [[112, 0, 16], [32, 16, 16], [144, 32, 3], [190, 35, 1], [20, 36, 12], [48, 48, 1]]),
]


def table_of(pages: list[list[int]], spare: int = 0) -> Any:
    """A 2-D block table; what no request touches is -1."""
    width = max(map(len, pages), default=0) + spare
    table = np.full((len(pages), width), -1, np.int32)
    for row, own in zip(table, pages, strict=True):
        row[:len(own)] = own
    return table


def csr_of(pages: list[list[int]]) -> tuple[Any, Any]:
    indptr = np.cumsum([0, *map(len, pages)]).astype(np.int32)
    return indptr, np.array([p for own in pages for p in own], np.int32)


FORMS: dict[str, Any] = {
    "lists": lambda pages: pages,
    "list of arrays": lambda pages: [np.array(own, np.int64) for own in pages],
    "2-D": table_of,
    "2-D int64": lambda pages: table_of(pages).astype(np.int64),
    "2-D, wider rows": lambda pages: table_of(pages, 7)[:, :-3],
    "2-D, transposed": lambda pages: np.asfortranarray(table_of(pages)),
    "2-D tensor": lambda pages: torch.from_numpy(table_of(pages)),
    "CSR": csr_of,
    "CSR int64": lambda pages: tuple(a.astype(np.int64) for a in csr_of(pages)),
    "CSR lists": lambda pages: tuple(a.tolist() for a in csr_of(pages)),
    "CSR, longer indices": lambda pages: (csr_of(pages)[0], np.append(csr_of(pages)[1], [9, 9])),
}


@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("vector", VECTORS)
def test_vectors(vector: Any, form: str) -> None:
    computed, scheduled, pages, exact, merged = vector
    for longest, want in ((None, exact), (16, exact), (0, merged)):
        plan = pagedkv.plan(computed, scheduled, FORMS[form](pages), page_size=16,
                            max_slice_tokens=longest)
        assert plan.slices.T.tolist() == want
        assert plan.slices.dtype == np.int32 and plan.slices.flags.c_contiguous
        assert (plan.num_slices, plan.num_tokens) == (len(want), sum(scheduled))
        slices, n = plan
        assert slices is plan.slices and n == plan.num_slices


@pytest.mark.parametrize("convert", [
    list, tuple, np.array, lambda x: np.array(x, np.int32), lambda x: np.array(x, np.uint8),
    torch.tensor, jnp.array, lambda x: np.repeat(x, 2).astype(np.int32)[::2]])
def test_counts_of_every_kind(convert: Any) -> None:
    computed, scheduled, pages, exact, _ = VECTORS[0]
    plan = pagedkv.plan(convert(computed), convert(scheduled), pages, page_size=16)
    assert plan.slices.T.tolist() == exact


def test_limited_slices_and_capacity() -> None:
    """Joined up to a bound in whole pages; columns behind n are zero."""
    plan = pagedkv.plan([10], [54], [[3, 4, 5, 6]], page_size=16, max_slice_tokens=32)
    assert plan.slices.T.tolist() == [[58, 0, 22], [80, 22, 32]]
    plan = pagedkv.plan([10], [54], [[3, 4, 5, 6]], page_size=16, max_slice_tokens=32, capacity=5)
    assert plan.slices.T.tolist() == [[58, 0, 22], [80, 22, 32], [0] * 3, [0] * 3, [0] * 3]
    assert plan.num_slices == 2
    plan = pagedkv.plan([0], [16], [[3]], page_size=16, capacity=1)
    assert plan.slices.shape == (3, 1)


def test_nothing_scheduled() -> None:
    for computed, scheduled, pages in (([], [], []), ([0], [0], [[]]), ([40], [0], [[1, 2, 3]])):
        plan = pagedkv.plan(computed, scheduled, pages, page_size=16)
        assert plan.slices.shape == (3, 0) and tuple(plan)[1] == 0 and plan.num_tokens == 0
    assert pagedkv.plan([], [], np.zeros((0, 4), np.int32), page_size=16).num_slices == 0
    assert pagedkv.plan([], [], ([0], []), page_size=16).num_slices == 0
    assert pagedkv.plan([0, 0], [0, 0], np.zeros((2, 0), np.int32), page_size=16).num_slices == 0
    assert pagedkv.plan([0, 0], [0, 0], ([0, 0, 0], []), page_size=16).num_slices == 0


def test_two_requests_are_never_joined() -> None:
    plan = pagedkv.plan([0, 0], [16, 16], [[3], [4]], page_size=16, max_slice_tokens=0)
    assert plan.slices.T.tolist() == [[48, 0, 16], [64, 16, 16]]


REQUESTS = st.lists(st.tuples(st.integers(0, 70), st.integers(0, 70)), max_size=8)


@settings(max_examples=200)
@given(seed=st.integers(0, 2**32 - 1), requests=REQUESTS, size=st.sampled_from([1, 2, 7, 16, 33]),
       scatter=st.booleans(), form=st.sampled_from(list(FORMS)),
       limit=st.sampled_from([None, 0, 1, 2, 5]))
def test_random_plans(seed: int, requests: Any, size: int, scatter: bool, form: str,
                      limit: int | None) -> None:
    batch = model.make_batch(np.random.default_rng(seed), requests, size, scatter=scatter)
    longest = limit * size if limit else limit
    got = pagedkv.plan(batch.computed, batch.scheduled, FORMS[form](batch.pages), page_size=size,
                       max_slice_tokens=longest, num_pages=batch.num_pages)
    want = model.plan(batch.computed, batch.scheduled, batch.pages, size, longest)
    assert model.columns(got.slices, got.num_slices) == want, (seed, requests, size)
    assert got.num_tokens == batch.num_tokens and got.slices.shape == (3, len(want))
    if longest is None:
        assert pagedkv.check_slices(
            got.slices, got.num_slices, num_tokens=batch.num_tokens,
            num_slots=batch.num_pages * size, page_size=size, strict=True) == batch.num_tokens


# ---- slot mappings -------------------------------------------------------------------


def test_slot_mapping_vectors() -> None:
    slots = [5, 6, 7, 8, -1, 9, 10, 31, 32, 33, -1, -1, 2]
    exact = pagedkv.plan_slot_mapping(slots, page_size=8)
    assert exact.slices.T.tolist() == [
        [5, 0, 3], [8, 3, 1], [9, 5, 2], [31, 7, 1], [32, 8, 2], [2, 12, 1]]
    assert (exact.num_slices, exact.num_tokens) == (6, 13)
    merged = pagedkv.plan_slot_mapping(slots, page_size=8, max_slice_tokens=0)
    assert merged.slices.T.tolist() == [[5, 0, 4], [9, 5, 2], [31, 7, 3], [2, 12, 1]]
    apart = pagedkv.plan_slot_mapping(slots, page_size=8, max_slice_tokens=0,
                                      query_start_loc=[0, 2, 7, 7, 9, 13])
    assert apart.slices.T.tolist() == [
        [5, 0, 2], [7, 2, 2], [9, 5, 2], [31, 7, 2], [33, 9, 1], [2, 12, 1]]
    wide = pagedkv.plan_slot_mapping(slots, page_size=8, capacity=8)
    assert wide.slices.shape == (3, 8) and not wide.slices[:, 6:].any()


@pytest.mark.parametrize("convert", [
    lambda s: np.array(s, np.int32), lambda s: np.array(s, np.int64), list, torch.tensor,
    lambda s: np.repeat(np.array(s, np.int64), 2)[::2]])
def test_slot_mapping_of_every_kind(convert: Any) -> None:
    assert pagedkv.plan_slot_mapping(convert([40, 41, -1, 42]), page_size=16) \
        .slices.T.tolist() == [[40, 0, 2], [42, 3, 1]]


def test_slot_mapping_of_nothing() -> None:
    for slots in ([], np.zeros(0, np.int64), [-1, -1]):
        plan = pagedkv.plan_slot_mapping(slots, page_size=16)
        assert plan.slices.shape == (3, 0) and plan.num_tokens == len(slots)


@settings(max_examples=200)
@given(seed=st.integers(0, 2**32 - 1), runs=st.lists(st.integers(1, 40), max_size=8),
       size=st.sampled_from([1, 3, 8, 16]), longest=st.sampled_from([None, 0, 1, 5, 24]),
       dtype=st.sampled_from([np.int32, np.int64]), cuts=st.integers(0, 3))
def test_random_slot_mappings(seed: int, runs: list[int], size: int, longest: int | None,
                              dtype: Any, cuts: int) -> None:
    rng = np.random.default_rng(seed)
    slots: list[int] = []
    for run in runs:  # runs of rising slots, holes, and runs that happen to adjoin
        first = int(rng.integers(0, 300)) if rng.random() < 0.7 or not slots else slots[-1] + 1
        slots += [-1] * run if rng.random() < 0.2 else list(range(first, first + run))
    inner = sorted(rng.integers(0, len(slots) + 1, cuts).tolist())
    starts = [0, *inner, len(slots)] if cuts else None
    got = pagedkv.plan_slot_mapping(np.array(slots, dtype), page_size=size, num_slots=10_000,
                                    max_slice_tokens=longest, query_start_loc=starts)
    want = model.plan_slots(slots, size, longest, starts or ())
    assert model.columns(got.slices, got.num_slices) == want, (seed, runs, size, longest)
    assert got.slices.shape == (3, len(want)) and got.num_tokens == len(slots)


@settings(max_examples=100)
@given(seed=st.integers(0, 2**32 - 1), runs=st.lists(st.integers(1, 30), max_size=6),
       size=st.sampled_from([1, 4, 16]), pages=st.integers(1, 4), padding=st.integers(0, 5),
       dtype=st.sampled_from([np.int32, np.int64]))
def test_random_blocks(seed: int, runs: list[int], size: int, pages: int, padding: int,
                       dtype: Any) -> None:
    """Rows of blocks of several pages: the plan of their slots, less the padding."""
    rng = np.random.default_rng(seed)
    blocks, block_rows, trash = 64, pages * size, 3 * pages * size
    slots = np.concatenate([np.arange(n) + 4 * size + rng.integers(0, 30 * size) for n in runs]
                           + [np.zeros(0, np.int64)]).astype(np.int64) % (blocks * size)
    slots = np.concatenate([slots, np.full(padding, 3 * size)])
    rows = (slots // size * block_rows + slots % size).astype(dtype)
    out = np.zeros((3, len(rows)), np.int32)
    n = _core.plan_blocks(torch.from_numpy(rows), size, block_rows, blocks * block_rows, trash, out)
    want = pagedkv.plan_slot_mapping(np.where(rows == trash, -1, slots), page_size=size)
    assert out[:, :n].T.tolist() == want.slices.T.tolist()
    if len(rows) and pages > 1:
        rows[rng.integers(len(rows))] += size
        assert _core.plan_blocks(rows, size, block_rows, blocks * block_rows, trash, out) == -1


@pytest.mark.parametrize("arguments, kind, match", [
    ((np.array([5]), 4, 6, 60, 0), InvalidError, "block_rows: is 6, no multiple"),
    ((np.array([5]), 4, 0, 60, 0), InvalidError, "block_rows: is 0"),
    ((np.array([5]), 0, 8, 60, 0), InvalidError, "block_rows"),
    ((np.array([60]), 4, 8, 60, 0), RangeError, "outside the cache"),
    ((np.array([-2]), 4, 8, 60, 0), RangeError, "below -1"),
    ((np.array([0, 8, 16]), 4, 8, 60, 56), RangeError, "do not fit"),
    ((np.array([5.0]), 4, 8, 60, 0), InvalidError, "rows: holds float64"),
    ((np.array([[5]]), 4, 8, 60, 0), InvalidError, "rows: has 2 dimensions"),
    (("5", 4, 8, 60, 0), InvalidError, "rows: is no array"),
    ((np.array([5]), 4.0, 8, 60, 0), TypeError, "float"),
    ((np.array([5]), 4, 8, 60), TypeError, "takes 6 arguments")])
def test_bad_blocks(arguments: tuple[Any, ...], kind: type[Exception], match: str) -> None:
    out = np.zeros((3, 2), np.int32)
    arrays = [a for a in (*arguments, out) if isinstance(a, np.ndarray)]
    before = [sys.getrefcount(a) for a in arrays]
    for _ in range(3):
        with pytest.raises(kind, match=match):
            _core.plan_blocks(*arguments, out)
    assert [sys.getrefcount(a) for a in arrays] == before
    assert _core.plan_blocks(np.array([56, -1, 8]), 4, 8, 60, 56, out) == 1
    assert out[:, 0].tolist() == [4, 2, 1]


@given(seed=st.integers(0, 2**32 - 1), requests=REQUESTS, size=st.sampled_from([1, 4, 16]))
def test_both_ways_to_a_plan_agree(seed: int, requests: Any, size: int) -> None:
    batch = model.make_batch(np.random.default_rng(seed), requests, size)
    slots = [own[p // size] * size + p % size
             for done, now, own in zip(batch.computed, batch.scheduled, batch.pages, strict=True)
             for p in range(done, done + now)]
    starts = np.cumsum([0, *batch.scheduled])
    for longest in (None, 0):
        a = pagedkv.plan(batch.computed, batch.scheduled, batch.pages, page_size=size,
                         max_slice_tokens=longest)
        b = pagedkv.plan_slot_mapping(slots, page_size=size, max_slice_tokens=longest,
                                      query_start_loc=starts)
        model.check_same(a.slices, b.slices, seed=seed, requests=requests)


# ---- steps -------------------------------------------------------------------------


@settings(max_examples=150)
@given(seed=st.integers(0, 2**32 - 1), requests=REQUESTS, size=st.sampled_from([1, 2, 7, 16]),
       gap=st.sampled_from([0, 16, 64]), longest=st.sampled_from([None, 0]),
       form=st.sampled_from(["lists", "2-D", "CSR"]), spare=st.integers(0, 3))
def test_random_steps(seed: int, requests: Any, size: int, gap: int, longest: int | None,
                      form: str, spare: int) -> None:
    """Upstream's seven fields, each whole."""
    batch = model.make_batch(np.random.default_rng(seed), requests, size)
    width = max([1, *map(len, batch.pages)]) + spare
    limits = {"max_num_reqs": max(1, len(requests)) + spare,
              "max_num_batched_tokens": max(16, batch.num_tokens + 40 * spare)}
    got = pagedkv.plan_step(
        batch.computed, batch.scheduled, FORMS[form](batch.pages), page_size=size,
        block_tables_width=width, bucket_gap_tokens=gap, max_slice_tokens=longest,
        num_slices_per_block=8, num_pages=batch.num_pages, **limits)
    want = model.step(batch.computed, batch.scheduled, batch.pages, size, width=width, gap=gap,
                      max_slice_tokens=longest, **limits)
    assert (got.num_tokens, got.token_bucket) == (want["num_tokens"], want["token_bucket"])
    assert got.num_slices_per_kv_cache_update_block == 8
    for name in ("slot_mapping", "block_tables", "context_lens", "query_start_loc", "num_seqs",
                 "num_kv_update_slices"):
        array = getattr(got, name)
        assert array.dtype == np.int32 and array.shape == want[name].shape, name
        model.check_same(array, want[name], field=name, seed=seed, requests=requests, size=size)


def test_a_step_feeds_the_update() -> None:
    """The worked example, its metadata, and the write with the device's own count."""
    computed, scheduled, pages, exact, _ = VECTORS[2]
    step = pagedkv.plan_step(computed, scheduled, pages, page_size=16, max_num_reqs=8,
                             max_num_batched_tokens=256, block_tables_width=4)
    assert step.token_bucket == 64 and step.slot_mapping.shape == (3, 20)
    assert step.slot_mapping[:, :6].T.tolist() == exact and not step.slot_mapping[:, 6:].any()
    assert step.context_lens.tolist() == [35, 31, 33, 0, 0, 0, 0, 0]
    assert step.query_start_loc.tolist() == [0, 35, 36, 49, 1, 1, 1, 1, 1]
    assert step.block_tables.tolist() == [
        [7, 2, 9, 0], [4, 11, 0, 0], [5, 1, 3, 0], *[[0] * 4] * 5]
    assert (step.num_seqs.tolist(), step.num_kv_update_slices.tolist()) == ([3], [6])
    assert step.num_slices_per_kv_cache_update_block == 64

    rows = np.random.default_rng(0).standard_normal((64, 2, 8)).astype(np.float32)
    cache = np.zeros((12 * 16, 2, 8), np.float32)
    want = cache.copy()
    model.update(model.item_bytes(rows), [(a, b, c) for a, b, c in exact],
                 model.item_bytes(want))
    pagedkv.kv_cache_update(rows, step.slot_mapping, cache, step.num_kv_update_slices,
                            page_size=16)
    model.check_same(cache, want)


# ---- sizing ------------------------------------------------------------------------


def test_sizing_vectors() -> None:
    """Upstream's own vectors."""
    buckets = sizing.token_buckets
    assert buckets(16, 512, 64) == [16, 32, 64, 128, 192, 256, 320, 384, 448, 512]
    assert buckets(16, 317, 64) == [16, 32, 64, 128, 192, 256, 320]
    assert buckets(16, 1024, 0) == buckets(16, 1024) == [16, 32, 64, 128, 256, 512, 1024]
    assert buckets(16, 317, 0) == [16, 32, 64, 128, 256, 512]
    for tokens, bucket in ((1, 16), (16, 16), (20, 32), (300, 320), (512, 512)):
        assert sizing.token_bucket(tokens, 16, 512, 64) == bucket
    for n, limit, padded in (
            (3, 32, 8), (9, 32, 16), (19, 32, 32), (17, 28, 28), (4, 128, 8), (8, 128, 8),
            (9, 128, 16), (16, 128, 16), (17, 128, 32), (100, 64, 64), (1, 128, 8)):
        assert sizing.padded_num_reqs(n, limit) == padded
    assert sizing.request_buckets(8, 32) == [8, 16, 32]
    assert sizing.request_buckets(8, 36) == [8, 16, 32, 36]
    assert sizing.max_num_reqs(32000, 128) == 524
    for length, page in ((512, 32), (1024, 64), (2048, 128), (4096, 256), (8192, 256), (8193, 16)):
        assert sizing.page_size(length) == page
    for reqs, length, page in ((2048, 512, 8), (32768, 512, 128), (131072, 256, 256)):
        assert sizing.min_page_size(reqs, length) == page
    for reqs, tokens, page, padded in (
            (128, 512, 128, 260), (128, 2048, 128, 272), (128, 512, 16, 288),
            (128, 2048, 16, 384), (128, 256, 16, 256), (128, 16, 16, 16)):
        assert sizing.padded_num_slices(reqs, tokens, page) == padded


@pytest.mark.parametrize(("page", "heads", "dim", "dtype", "page_bytes", "vllm", "tpu_inference"), [
    (128, 8, 128, "bf16", 524288, 32, 64), (16, 8, 128, "bf16", 65536, 64, 64),
    (256, 8, 128, "bf16", 1048576, 16, 32), (128, 1, 128, "bf16", 65536, 64, 64),
    (128, 32, 96, "bf16", 2097152, 8, 16), (128, 8, 128, "fp8_e4m3", 262144, 64, 64),
    (128, 1, 128, "fp8_e4m3", 65536, 64, 64)])
def test_slices_per_block(page: int, heads: int, dim: int, dtype: str, page_bytes: int, vllm: int,
                          tpu_inference: int) -> None:
    assert sizing.scratch_page_bytes(page, heads, dim, dtype) == page_bytes
    assert sizing.num_slices_per_block(page_bytes, 16 << 20) == vllm
    assert sizing.num_slices_per_block(page_bytes, 39 << 20) == tpu_inference
