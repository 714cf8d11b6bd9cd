"""Conversions and scales against NumPy and ml_dtypes, bit for bit."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pagedkv
import pytest
import torch
from hypothesis import given, settings
from pagedkv import InvalidError, RangeError

import convert_model as numbers
import model
from convert_model import DTYPES, F32, FLOATS, QUANTISED
from model import Arena, check_same

HEAD_DIM = 64


def cache_for(dtype: str, slots: int, heads: int, dim: int) -> Any:
    return np.zeros((slots, heads, dim // 2 if dtype == "int4" else dim), DTYPES[dtype])


def write(rows: Any, to: str, **arguments: Any) -> Any:
    """The bytes of all rows in a cache of `to`."""
    tokens, heads, dim = rows.shape
    cache = cache_for(to, tokens, heads, dim)
    slices = np.array([[0], [0], [tokens]], np.int32)
    pagedkv.kv_cache_update(rows, slices, cache, 1, page_size=1,
                            cache_dtype="int4" if to == "int4" else None, **arguments)
    return model.item_bytes(cache)


def read(cache: Any, dtype: str, to: str, dim: int, **arguments: Any) -> Any:
    """All slots of a cache as rows of `to`."""
    out = np.zeros((len(cache), cache.shape[1], dim), FLOATS[to])
    slices = np.array([[0], [0], [len(cache)]], np.int32)
    pagedkv.kv_cache_gather(cache, slices, 1, out, page_size=1,
                            cache_dtype="int4" if dtype == "int4" else None, **arguments)
    return out


def as_rows(values: Any) -> Any:
    """[T, 2, HEAD_DIM], filled up with zeros."""
    length = -(-len(values) // (2 * HEAD_DIM)) * 2 * HEAD_DIM
    rows = np.zeros(length, values.dtype)
    rows[:len(values)] = values  # of one dtype: a copy of bits
    return rows.reshape(-1, 2, HEAD_DIM)


def frozen(array: Any) -> Any:
    array.flags.writeable = False
    return array


PAIRS = [(a, b) for a in FLOATS for b in DTYPES if a != b]


# ---- every number ------------------------------------------------------------------


@pytest.mark.parametrize(("source", "to"), PAIRS)
def test_every_number(source: str, to: str) -> None:
    rows = as_rows(numbers.inputs(source))
    want = numbers.encode(numbers.widen(rows), to)
    check_same(write(rows, to), want, source=source, to=to)


@pytest.mark.parametrize("to", [d for d in DTYPES if d not in ("int4", "int8")])
def test_where_ml_dtypes_agrees_it_is_asked_directly(to: str) -> None:
    """The model of the test above is not in between: astype() of finite, in-range numbers."""
    for source in FLOATS:
        values = numbers.inputs(source)
        with np.errstate(invalid="ignore"):
            wide = values.astype(F32)
        values = values[np.isfinite(wide) & (np.abs(wide) <= numbers.MOST.get(to, np.inf))]
        rows = as_rows(values)
        with np.errstate(over="ignore"):
            want = rows.astype(DTYPES[to])
        check_same(write(rows, to), model.item_bytes(want), source=source, to=to)


@pytest.mark.parametrize("to", list(FLOATS))
@pytest.mark.parametrize("dtype", list(QUANTISED))
def test_every_number_read_back(dtype: str, to: str) -> None:
    """All bytes; float8's NaNs are quiet NaNs."""
    raw = np.arange(256, dtype=np.uint8).reshape(2, 2, 64)
    cache = raw.view(QUANTISED[dtype])
    exact = numbers.decode(raw, dtype)
    out = read(cache, dtype, to, exact.shape[-1])
    check_nearly(out, exact.astype(FLOATS[to]), dtype=dtype, to=to)


def check_nearly(got: Any, want: Any, **context: Any) -> None:
    """The same bits but for NaNs, which are quiet, of any sign and payload."""
    with np.errstate(invalid="ignore"):
        nan = np.isnan(want.astype(F32))
    quiet = {4: 0x7FC00000, 2: 0x7E00}[got.dtype.itemsize]
    if got.dtype == FLOATS["bfloat16"]:
        quiet = 0x7FC0
    bits = numbers.bits_of(got)
    assert (bits[nan] & quiet == quiet).all(), context
    check_same(np.where(nan, 0, bits), np.where(nan, 0, numbers.bits_of(want)), **context)


# Bits of the source, its dtype -> the bits of the destination. From docs/numerics.md.
TABLE: list[tuple[str, int, str, int]] = [
    ("float32", 0x3F880001, "float8_e5m2", 0x3C),
    ("float32", 0x3F900008, "float8_e5m2", 0x3D),  # 1.125 + 2^-20: two roundings would give 0x3C
    ("float32", 0x00018000, "bfloat16", 0x0002), ("float32", 0x7F7FFFFF, "bfloat16", 0x7F80),
    ("float32", 0x477FEFFF, "float16", 0x7BFF), ("float32", 0x477FF000, "float16", 0x7C00),
    ("float32", 0x33000000, "float16", 0x0000), ("float32", 0x33000001, "float16", 0x0001),
    ("float32", 0x43E80000, "float8_e4m3fn", 0x7E),  # 464; ml_dtypes says NaN
    ("float32", 0xFF800000, "float8_e4m3fn", 0xFE), ("float32", 0x7F800000, "float8_e4m3fn", 0x7E),
    ("float32", 0x3A800000, "float8_e4m3fn", 0x00), ("float32", 0x3B400000, "float8_e4m3fn", 0x02),
    ("float32", 0x47700000, "float8_e5m2", 0x7B),  # 61440; ml_dtypes says infinity
    ("float32", 0x7F800000, "float8_e5m2", 0x7B), ("float32", 0xFF800000, "float8_e5m2", 0xFB),
    ("float32", 0xC3008000, "int8", 0x80), ("float32", 0x3F000000, "int8", 0x00),
    ("float32", 0x3FC00000, "int8", 0x02), ("float32", 0x42FF0000, "int8", 0x7F),
    ("float32", 0x7F800000, "int8", 0x7F), ("float32", 0xFF800000, "int8", 0x80),
    ("float32", 0xFF800001, "bfloat16", 0xFFC0), ("float32", 0xFF800001, "float16", 0xFE00),
    ("float32", 0xFF800001, "float8_e4m3fn", 0xFF), ("float32", 0xFF800001, "int8", 0x00),
    ("float32", 0x7FC00000, "float8_e5m2", 0x7F), ("float32", 0xFFC00000, "float8_e5m2", 0xFF),
    ("float32", 0x7FABCDEF, "bfloat16", 0x7FEB), ("float32", 0x7FABCDEF, "float16", 0x7F5E),
    ("float32", 0x80000000, "bfloat16", 0x8000), ("float32", 0x80000000, "float16", 0x8000),
    ("float32", 0x80000000, "float8_e4m3fn", 0x80), ("float32", 0x80000000, "float8_e5m2", 0x80),
    ("float32", 0x80000000, "int8", 0x00),
    ("float16", 0x7C01, "float32", 0x7FC02000), ("bfloat16", 0xFF81, "float32", 0xFFC10000),
    ("float16", 0xFC01, "bfloat16", 0xFFC0), ("bfloat16", 0x7F81, "float16", 0x7E08),
    ("float16", 0x7C00, "float8_e4m3fn", 0x7E), ("bfloat16", 0xFF80, "float8_e5m2", 0xFB),
]


@pytest.mark.parametrize(("source", "bits", "to", "want"), TABLE)
def test_the_table(source: str, bits: int, to: str, want: int) -> None:
    """In every lane of a vector."""
    size = FLOATS[source].itemsize
    rows = np.full((1, 2, 33), bits, f"u{size}").view(FLOATS[source])
    got = write(rows, to).view(f"u{DTYPES[to].itemsize}")
    assert (got == want).all(), f"{got.flat[0]:#x} instead of {want:#x}"


def test_int4_pairs() -> None:
    """The even element in the low nibble."""
    rows = np.tile(np.array([-8.4, 3, 7.5, 0.5], F32), 8).reshape(1, 1, 32)
    check_same(write(rows, "int4"), np.tile(np.array([0x38, 0x07], np.uint8), 8))


def test_scales_of_the_document() -> None:
    row = np.zeros((1, 2, 4), F32)
    row[0, 0] = 1.0, -2.5, np.inf, np.nan
    scales = np.zeros((1, 1, 1), F32)
    raw = write(row, "int8", k_scale=scales)
    assert raw[0, 0].view(np.int8).tolist() == [51, -127, 127, 0]
    assert scales.view(np.uint32).item() == 0x3CA14285
    back = read(raw.view(np.int8), "int8", "float32", 4, k_scale=scales)[0, 0]
    assert [float(x) for x in back] == [float(F32(1.003937)), -2.5, 2.5, 0]
    row[0, 0] = 1e-36, 0, 0, 0
    assert write(row, "int8", k_scale=scales)[0, 0, 0] == 85
    assert scales.item() == 2.0**-126
    for scale, x, want in ((3, 21, 7), (10, 5, 0), (0.3, 0.15, 0), (0.3, 2.25, 8)):
        assert (write(np.full((1, 2, 9), x, F32), "int8", k_scale=scale)[:, 0] == want).all()


# ---- scales, layouts, padding --------------------------------------------------------


def scale_array(kind: str, lead: tuple[int, ...], heads: int, dim: int, group: int,
                rng: np.random.Generator) -> tuple[Any, Any]:
    """The argument, and the memory that it lies in: padded, and strided by head."""
    if kind == "none":
        return None, np.zeros(0, np.uint8)
    if kind == "number":
        return float(rng.random() + 0.01), np.zeros(0, np.uint8)
    if kind == "tensor":
        one = np.array([rng.random() + 0.01], F32)
        return one if rng.random() < 0.5 else one.reshape(()), one
    if kind == "head":
        wide = (rng.random((heads, 2)) + 0.01).astype(F32)
        return wide[:, 1], wide
    shape = (*lead, heads, 1 if kind == "token" else dim // group)
    arena = Arena.make(shape, F32, pad=[*[3] * (len(shape) - 1), 1])
    return arena.array[..., 0] if kind == "token" else arena.array, arena.memory


def scale_at(scale: Any, kind: str, slot: tuple[int, ...], head: int, group: int, dim: int) -> Any:
    """What each of the elements of a head vector is divided by."""
    if scale is None:
        return F32(1)
    if kind in ("number", "tensor"):
        return F32(np.asarray(scale).reshape(-1)[0])
    if kind == "head":
        return scale[head]
    own = scale[(*slot, head)]
    return own if kind == "token" else np.repeat(own, group)


KINDS = ("none", "number", "tensor", "head", "token", "group")

CASES = st.fixed_dictionaries({
    "seed": st.integers(0, 2**32 - 1),
    "source": st.sampled_from(list(FLOATS)),
    "back": st.sampled_from(list(FLOATS)),
    "kinds": st.tuples(st.sampled_from(KINDS), st.sampled_from(KINDS)),
    "page_size": st.sampled_from([1, 2, 3, 8, 16]),
    "requests": st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=4),
    "heads": st.integers(1, 3),
    "dims": st.tuples(st.sampled_from([2, 8, 12, 64, 72]), st.sampled_from([2, 8, 12, 64, 72])),
    "apart": st.booleans(),
    "paged": st.booleans(),
    "hnd": st.booleans(),
    "pad": st.integers(0, 3),
    "max_slice": st.sampled_from([None, 0]),
    "read_soon": st.booleans(),
})


def make_caches(case: dict[str, Any], batch: model.Batch, to: str) -> list[Arena]:
    size, heads = case["page_size"], case["heads"]
    dims = case["dims"] if case["apart"] else case["dims"][:1]
    order = (0, 2, 1, 3) if case["paged"] and case["hnd"] else None
    lead = (batch.num_pages, size) if case["paged"] else (batch.num_pages * size,)
    caches = []
    for dim in dims:
        shape = (*lead, heads if case["apart"] else 2 * heads, dim // 2 if to == "int4" else dim)
        # A flat cache has no gap between pages of one token stride.
        caches.append(Arena.make(shape, DTYPES[to], order=order,
                                 pad=[0, *[case["pad"]] * (len(lead) + 1)]))
    return caches


@pytest.mark.parametrize("to", list(DTYPES))
@settings(max_examples=60)
@given(case=CASES)
def test_random_batches(to: str, case: dict[str, Any]) -> None:
    """The whole cache, its padding, the scales and theirs; then the rows that are read back."""
    rng = np.random.default_rng(case["seed"])
    if to in FLOATS:
        case = case | {"kinds": ("none", "none")}
        if case["source"] == to:
            case = case | {"source": "float32" if to != "float32" else "bfloat16"}
    heads, size, apart = case["heads"], case["page_size"], case["apart"]
    dims = case["dims"] if apart else case["dims"][:1] * 2
    batch = model.make_batch(rng, case["requests"], size)
    slices, n = pagedkv.plan(batch.computed, batch.scheduled, batch.pages, page_size=size,
                             max_slice_tokens=case["max_slice"])
    columns = model.columns(slices, n)
    caches = make_caches(case, batch, to)
    lead = caches[0].array.shape[:-2]
    groups = [int(rng.choice([g for g in range(2, d + 1, 2) if d % g == 0])) for d in dims]
    scales = [scale_array(kind, lead, heads, d, g, rng)
              for kind, d, g in zip(case["kinds"], dims, groups, strict=True)]
    if apart:
        rows = [numbers.normal_rows(rng, (batch.num_tokens, heads, d), case["source"])
                for d in dims]
    else:
        rows = [numbers.normal_rows(rng, (batch.num_tokens, 2 * heads, dims[0]), case["source"])]
    arguments = {
        "page_size": size, "k_scale": scales[0][0], "v_scale": scales[1][0],
        "cache_dtype": "int4" if to == "int4" else None}
    want, want_scales = expect(case, to, columns, caches, scales, rows, groups)
    arrays = [c.array for c in caches]
    if apart:
        pagedkv.kv_cache_update_separate(*rows, slices, *arrays, n, **arguments)
    else:
        pagedkv.kv_cache_update(rows[0], slices, arrays[0], n, read_soon=case["read_soon"],
                                **arguments)
    for i, cache in enumerate(caches):
        check_same(cache.memory, want[i].memory, what=f"cache {i}", to=to, **case)
    for i in range(2):
        check_same(scales[i][1], want_scales[i], what=f"scales {i}", to=to, **case)
    check_read(case, to, columns, caches, scales, rows, groups, slices, arguments)


def planes(case: dict[str, Any], arrays: list[Any]) -> list[Any]:
    """K and V, [..., heads, D] each."""
    return arrays if case["apart"] else [arrays[0][..., 0::2, :], arrays[0][..., 1::2, :]]


def slot_index(case: dict[str, Any], slot: int) -> tuple[int, ...]:
    size = case["page_size"]
    return (slot // size, slot % size) if case["paged"] else (slot,)


def expect(case: dict[str, Any], to: str, columns: Any, caches: list[Arena], scales: Any,
           rows: list[Any], groups: list[int]) -> tuple[list[Arena], list[Any]]:
    """What the caches and the memory of the scales become."""
    want = [c.copy() for c in caches]
    after = [memory.copy() for _, memory in scales]
    into = planes(case, [c.bytes for c in want])
    for i, plane in enumerate(planes(case, rows)):
        kind, (scale, memory) = case["kinds"][i], scales[i]
        new = scale
        if kind in ("token", "group"):
            offset = scale.__array_interface__["data"][0] - memory.ctypes.data
            new = np.ndarray(scale.shape, F32, after[i], offset, scale.strides)
        wide = numbers.widen(plane)
        dim = wide.shape[-1]
        for cache_start, row_start, length in columns:
            for t in range(length):
                slot = slot_index(case, cache_start + t)
                x = wide[row_start + t]
                if kind == "token":
                    new[slot] = numbers.scale_of(x, to)
                elif kind == "group":
                    new[slot] = numbers.scale_of(x.reshape(len(x), -1, groups[i]), to)
                for head in range(len(x)):
                    by = scale_at(new, kind, slot, head, groups[i], dim)
                    into[i][(*slot, head)] = numbers.quantise(x[head], to, by)
    return want, after


def check_read(case: dict[str, Any], to: str, columns: Any, caches: list[Arena], scales: Any,
               rows: list[Any], groups: list[int], slices: Any, arguments: Any) -> None:
    back = case["back"]
    if back == to:
        return
    outs = [np.full(r.shape, 7, FLOATS[back]) for r in rows]
    wants = [o.copy() for o in outs]
    source = planes(case, [c.bytes for c in caches])
    for i, plane in enumerate(planes(case, wants)):
        for cache_start, row_start, length in columns:
            for t in range(length):
                slot = slot_index(case, cache_start + t)
                for head in range(plane.shape[1]):
                    by = scale_at(scales[i][0], case["kinds"][i], slot, head, groups[i],
                                  plane.shape[-1])
                    raw = numbers.dequantise(source[i][(*slot, head)], to, by, back)
                    plane[row_start + t, head] = raw.view(FLOATS[back])
    arrays = [c.array for c in caches]
    before = [c.memory.copy() for c in caches]
    if case["apart"]:
        pagedkv.kv_cache_gather_separate(*arrays, slices, slices.shape[1], *outs, **arguments)
    else:
        assert pagedkv.kv_cache_gather(arrays[0], slices, slices.shape[1], outs[0],
                                       **arguments) is outs[0]
    for i, out in enumerate(outs):
        check_nearly(out, wants[i], what=f"read back {i}", to=to, **case)
    for i, cache in enumerate(caches):
        check_same(cache.memory, before[i], what=f"read cache {i}", to=to, **case)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_make_the_same_bytes(threads: int) -> None:
    """Over 4 MiB; slices of every length, so that parts are cut inside them."""
    rng = np.random.default_rng(threads)
    lengths = [1] * 900 + [16] * 200 + [3000, 0, 77]
    rng.shuffle(lengths)
    starts = np.cumsum([0, *lengths[:-1]])
    slices = np.array([starts + np.cumsum(rng.integers(0, 3, len(lengths))), starts, lengths],
                      np.int32)
    tokens, slots = sum(lengths), int(slices[0, -1] + lengths[-1])
    rows = rng.standard_normal((tokens, 6, 72)).astype(F32)
    assert rows.nbytes > 8 << 20
    results = []
    for n in (1, threads):
        pagedkv.set_num_threads(n)
        cache, k, v = (np.full(shape, 9, d) for shape, d in (
            ((slots, 6, 36), np.uint8), ((slots, 3), F32), ((slots, 3, 6), F32)))
        out = np.zeros_like(rows)
        arguments = {"page_size": 1, "k_scale": k, "v_scale": v, "cache_dtype": "int4"}
        for _ in range(3):
            pagedkv.kv_cache_update(rows, slices, cache, slices.shape[1], **arguments)
        pagedkv.kv_cache_gather(cache, slices, slices.shape[1], out, **arguments)
        results.append([cache, k, v, out])
    for one, many in zip(*results, strict=True):
        check_same(many, one, threads=threads)
    scale = numbers.scale_of(rows[:, 0::2], "int4")
    check_same(out[:, 0::2], numbers.dequantise(
        numbers.quantise(rows[:, 0::2], "int4", scale[..., None]), "int4", scale[..., None],
        "float32"))


# ---- what arguments may be -----------------------------------------------------------


ROWS = np.linspace(-3, 3, 6 * 4 * 8, dtype=F32).reshape(6, 4, 8)
PLAN = np.array([[5, 24], [0, 2], [2, 4]], np.int32)


def expected(to: str, scale: Any = 1) -> Any:
    raw = numbers.quantise(ROWS, to, scale)
    cache = np.zeros((32, *raw.shape[1:]), np.uint8)
    cache[5:7], cache[24:28] = raw[:2], raw[2:]
    return cache


def test_names_of_dtypes() -> None:
    """A name, a dtype, a scalar type; unsigned integers of that size, or the dtype itself."""
    for name in (ml_dtypes.int4, np.dtype(ml_dtypes.int4), jnp.int4):
        cache = np.zeros((32, 4, 4), np.uint8)
        pagedkv.kv_cache_update(ROWS, PLAN, cache, 2, cache_dtype=name)
        check_same(cache, expected("int4"), name=name)
    for name in ("float8_e5m2", ml_dtypes.float8_e5m2, np.dtype(ml_dtypes.float8_e5m2),
                 torch.float8_e5m2, jnp.float8_e5m2):
        for dtype in (np.uint8, ml_dtypes.float8_e5m2):
            cache = np.zeros((32, 4, 8), dtype)
            pagedkv.kv_cache_update(ROWS, PLAN, cache, 2, cache_dtype=name)
            check_same(cache, expected("float8_e5m2"), name=name)
    cache = np.zeros((32, 4, 8), np.uint16)
    pagedkv.kv_cache_update(ROWS, PLAN, cache, 2, cache_dtype="bfloat16")
    check_same(cache, expected("bfloat16"))


def test_tensors() -> None:
    """PyTorch's on every side, its float8 and its scale of no axes."""
    cache = torch.zeros(32, 4, 8, dtype=torch.float8_e4m3fn)
    scale = torch.tensor(0.25)
    pagedkv.kv_cache_update(torch.from_numpy(ROWS), torch.from_numpy(PLAN), cache, 2,
                            k_scale=scale, v_scale=0.25)
    check_same(cache.view(torch.uint8).numpy(), expected("float8_e4m3fn", 0.25))
    out = torch.zeros(6, 4, 8, dtype=torch.bfloat16)
    scales = torch.full((2,), 0.25)
    pagedkv.kv_cache_gather(cache, torch.from_numpy(PLAN), 2, out, k_scale=scales, v_scale=scale)
    want = numbers.dequantise(numbers.quantise(ROWS, "float8_e4m3fn", 0.25), "float8_e4m3fn", 0.25,
                              "bfloat16")
    check_same(out.view(torch.int16).numpy(), want)
    computed = torch.zeros(32, 2)
    pagedkv.kv_cache_update(torch.from_numpy(ROWS), torch.from_numpy(PLAN),
                            torch.zeros(32, 4, 8, dtype=torch.int8), 2, k_scale=computed)
    check_same(computed[5:7].numpy(), numbers.scale_of(ROWS[:2, 0::2], "int8"))
    assert computed[7:24].count_nonzero() == 0


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_new_kv_and_given_scales_of_jax(dtype: Any) -> None:
    rows = jnp.asarray(ROWS).astype(dtype)
    cache = np.zeros((32, 4, 8), np.int8)
    pagedkv.kv_cache_update(rows, PLAN, cache, 2, k_scale=jnp.array([0.5, 0.5]),
                            v_scale=jnp.float32(0.5))
    raw = numbers.quantise(numbers.widen(np.asarray(rows)), "int8", 0.5)
    check_same(cache[24:28], raw[2:])


def test_numbers_of_any_kind_are_scales() -> None:
    for scale in (0.5, np.float32(0.5), np.float64(0.5), np.array(0.5, F32), np.array([0.5], F32)):
        cache = np.zeros((32, 4, 8), np.int8)
        pagedkv.kv_cache_update(ROWS, PLAN, cache, 2, k_scale=scale, v_scale=scale)
        check_same(cache, expected("int8", 0.5), scale=scale)
    cache = np.zeros((32, 4, 8), np.int8)
    pagedkv.kv_cache_update(ROWS, PLAN, cache, 2, k_scale=2, v_scale=2)
    check_same(cache, expected("int8", 2))


def test_one_array_holds_the_scales_of_k_and_v() -> None:
    """Interleaved as the heads are."""
    scales = np.zeros((32, 4), F32)
    cache = np.zeros((32, 4, 8), np.int8)
    pagedkv.kv_cache_update(ROWS, PLAN, cache, 2, k_scale=scales[:, ::2], v_scale=scales[:, 1::2])
    want = numbers.scale_of(ROWS, "int8")
    check_same(scales[24:28], want[2:])
    check_same(cache[24:28], numbers.quantise(ROWS, "int8", want[..., None])[2:])


def test_the_own_dtype_is_a_copy() -> None:
    """Of bits, whatever the scales are; packed int4 too."""
    for dtype, name, given in ((ml_dtypes.float8_e4m3fn, None, 0.5), (np.uint8, "int4", 0.0),
                               (np.uint8, "float8_e5m2", None), (np.int8, None, float("nan"))):
        rows = np.arange(192, dtype=np.uint8).reshape(6, 4, 8).view(dtype)
        cache = np.zeros((32, 4, 8), dtype)
        pagedkv.kv_cache_update(rows, PLAN, cache, 2, k_scale=given, cache_dtype=name)
        check_same(cache[24:28], rows[2:], dtype=dtype, name=name)
        out = np.zeros_like(rows)
        pagedkv.kv_cache_gather(cache, PLAN, 2, out, v_scale=given, cache_dtype=name)
        check_same(out, rows, dtype=dtype, name=name)
    rows = np.arange(192, dtype=np.uint8).reshape(6, 4, 8).view(ml_dtypes.float8_e5m2)
    cache = np.zeros((32, 4, 8), np.uint8)
    pagedkv.kv_cache_update(rows, PLAN, cache, 2, cache_dtype="float8_e5m2")
    check_same(cache[24:28], rows[2:])


def test_nothing_to_write() -> None:
    scales = np.zeros((32, 2), F32)
    cache = np.zeros((32, 4, 8), np.int8)
    for rows, n in ((ROWS, 0), (ROWS[:0], 0), (torch.zeros(0, 4, 8), 0)):
        pagedkv.kv_cache_update(rows, PLAN, cache, n, k_scale=scales, v_scale=0.5)
    assert not scales.any() and not cache.any()


def test_read_only_scales_are_read() -> None:
    """Given ones by an update, all by a gather."""
    cache = np.zeros((32, 4, 8), np.int8)
    head, k, v = frozen(np.full(2, 0.5, F32)), *(frozen(np.full((32, 2), 0.5, F32)) for _ in "kv")
    pagedkv.kv_cache_update(ROWS, PLAN, cache, 2, k_scale=head, v_scale=head)
    check_same(cache, expected("int8", 0.5))
    out = np.zeros_like(ROWS)
    pagedkv.kv_cache_gather(cache, PLAN, 2, out, k_scale=k, v_scale=v)
    check_same(out, numbers.dequantise(numbers.quantise(ROWS, "int8", 0.5), "int8", 0.5,
                                       "float32"))


@pytest.mark.parametrize("wrap", [np.asarray, torch.from_numpy])
def test_references_return(wrap: Any) -> None:
    """After success, after what the bindings refuse, and after what the library refuses."""
    cache = np.zeros((32, 4, 8), np.int8)
    k, v = wrap(np.zeros((32, 2), F32)), wrap(np.full(2, 0.5, F32))
    bad, name = wrap(np.array([1, -1], F32)), "".join(("in", "t8"))
    owners = [k, v, bad, name, cache]

    def calls(times: int) -> None:
        for _ in range(times):
            pagedkv.kv_cache_update(ROWS, PLAN, cache, 2, k_scale=k, v_scale=v, cache_dtype=name)
            for refused in ({"k_scale": k, "v_scale": bad}, {"k_scale": k, "v_scale": k},
                            {"k_scale": k, "cache_dtype": "int9"}, {"k_scale": v, "v_scale": "0"}):
                try:
                    pagedkv.kv_cache_update(ROWS, PLAN, cache, 2, **refused)
                except ValueError:
                    continue
                raise AssertionError("the call did not fail")

    calls(500)
    gc.collect()
    before, blocks = [sys.getrefcount(o) for o in owners], sys.getallocatedblocks()
    calls(3000)
    gc.collect()
    assert [sys.getrefcount(o) for o in owners] == before
    assert sys.getallocatedblocks() - blocks < 1000  # a leak of one object a call is over it


# ---- bad input -------------------------------------------------------------------------


def overlapping(_: Any) -> dict[str, Any]:
    memory = np.zeros(32 * 4 * 8 + 4, np.uint8)
    return {"kv_cache": memory[:1024].view(np.int8).reshape(32, 4, 8),
            "k_scale": memory[512:768].view(F32).reshape(32, 2)}


def with_rows(_: Any) -> dict[str, Any]:
    memory = np.zeros(6 * 4 * 8, F32)
    return {"new_kv": memory.reshape(6, 4, 8), "k_scale": memory[:64].reshape(32, 2)}


I1 = np.int8
# Arguments that differ from the good ones -> the exception, its index, and the whole text.
BAD: dict[str, tuple[Any, type[Exception], int, str]] = {
    "no conversion": (
        {"new_kv": np.zeros((6, 4, 8), ml_dtypes.float8_e5m2)}, InvalidError, -1,
        "new_kv: holds float8_e5m2, but kv_cache holds int8; there is no conversion between these "
        "dtypes"),
    "unknown rows": (
        {"new_kv": ROWS.astype(np.float64)}, InvalidError, -1,
        "new_kv: holds float64, but kv_cache holds int8; there is no conversion between these "
        "dtypes"),
    "unknown cache": (
        {"kv_cache": np.zeros((32, 4, 8), np.uint8)}, InvalidError, -1,
        "new_kv: holds float32, but kv_cache holds uint8; there is no conversion between these "
        "dtypes"),
    "int4, one a byte": (
        {"kv_cache": np.zeros((32, 4, 8), ml_dtypes.int4)}, InvalidError, -1,
        "new_kv: holds float32, but kv_cache holds int4; there is no conversion between these "
        "dtypes (a cache of uint8 holds two int4 an item, with cache_dtype=\"int4\")"),
    "int4, one a byte, into two": (
        {"new_kv": ROWS.astype(ml_dtypes.int4), "kv_cache": np.zeros((32, 4, 4), np.uint8),
         "cache_dtype": "int4"}, InvalidError, -1,
        "new_kv: holds int4, but kv_cache holds int4, two a byte; there is no conversion between "
        "these dtypes (a cache of uint8 holds two int4 an item, with cache_dtype=\"int4\")"),
    "cache_dtype unknown": (
        {"cache_dtype": "fp8"}, InvalidError, -1,
        "cache_dtype: is 'fp8', none of float32, float16, bfloat16, float8_e4m3fn, float8_e5m2, "
        "int8 and int4"),
    "cache_dtype of no name": (
        {"cache_dtype": 3}, InvalidError, -1, "cache_dtype: is '3', none of float32, float16, "
        "bfloat16, float8_e4m3fn, float8_e5m2, int8 and int4"),
    "cache_dtype of another dtype": (
        {"cache_dtype": "float8_e5m2"}, InvalidError, -1,
        "cache_dtype: is float8_e5m2, which items of kv_cache (int8) cannot be; unsigned integers "
        "of its size can"),
    "cache_dtype of another size": (
        {"cache_dtype": "bfloat16", "kv_cache": np.zeros((32, 4, 8), np.uint8)}, InvalidError, -1,
        "cache_dtype: is bfloat16, which items of kv_cache (uint8) cannot be; unsigned integers of "
        "its size can"),
    "int4 head_dim": (
        {"cache_dtype": "int4", "kv_cache": np.zeros((32, 4, 8), np.uint8)}, InvalidError, -1,
        "new_kv: has heads of [4, 8], but kv_cache of [4, 16]"),
    "odd heads": (
        {"new_kv": ROWS[:, :3], "kv_cache": np.zeros((32, 3, 8), I1), "k_scale": 0.5},
        InvalidError, -1, "kv_cache: scales need pairs of K and V, but it has 3 heads"),
    "a scale that is no array": (
        {"k_scale": "0.5"}, InvalidError, -1,
        "k_scale: is no array: it has neither DLPack nor an array interface that says where its "
        "items lie"),
    "a list": (
        {"v_scale": [0.5, 0.5]}, InvalidError, -1,
        "v_scale: is no array: it has neither DLPack nor an array interface that says where its "
        "items lie"),
    "scales of float64": (
        {"k_scale": np.ones(2)}, InvalidError, -1, "k_scale: holds float64, not float32"),
    "scales of float16": (
        {"v_scale": np.ones((32, 2), np.float16)}, InvalidError, -1,
        "v_scale: holds float16, not float32"),
    "heads": (
        {"k_scale": np.ones(4, F32)}, InvalidError, -1,
        "k_scale: is neither a number nor of shape [2], [32, 2] or [32, 2, groups]"),
    "slots": (
        {"k_scale": np.ones((31, 2), F32)}, InvalidError, -1,
        "k_scale: is neither a number nor of shape [2], [32, 2] or [32, 2, groups]"),
    "heads of a slot": (
        {"v_scale": np.ones((32, 4), F32)}, InvalidError, -1,
        "v_scale: is neither a number nor of shape [2], [32, 2] or [32, 2, groups]"),
    "axes": (
        {"k_scale": np.ones((2, 16, 2, 2), F32)}, InvalidError, -1,
        "k_scale: is neither a number nor of shape [2], [32, 2] or [32, 2, groups]"),
    "axes of a paged cache": (
        {"k_scale": np.ones((32, 2), F32), "kv_cache": np.zeros((2, 16, 4, 8), I1)}, InvalidError,
        -1, "k_scale: is neither a number nor of shape [2], [2, 16, 2] or [2, 16, 2, groups]"),
    "groups": (
        {"k_scale": np.ones((32, 2, 3), F32)}, InvalidError, -1,
        "k_scale: 3 groups do not divide a head of 8 elements"),
    "no group": (
        {"k_scale": np.ones((32, 2, 0), F32)}, InvalidError, -1,
        "k_scale: 0 groups do not divide a head of 8 elements"),
    "groups of one int4": (
        {"v_scale": np.ones((32, 2, 8), F32), "cache_dtype": "int4",
         "kv_cache": np.zeros((32, 4, 4), np.uint8)}, InvalidError, -1,
        "v_scale: group_size makes no whole bytes"),
    "gaps in groups": (
        {"k_scale": np.ones((32, 2, 4), F32)[..., ::2]}, InvalidError, -1,
        "k_scale: its last axis is not contiguous"),
    "reversed scales": (
        {"k_scale": np.ones((32, 2), F32)[::-1]}, InvalidError, -1,
        "k_scale: a stride of the scales is negative or too small, or they overflow"),
    "one scale for all slots": (
        {"v_scale": np.lib.stride_tricks.as_strided(np.ones(2, F32), (32, 2), (0, 4))},
        InvalidError, -1,
        "v_scale: a stride of the scales is negative or too small, or they overflow"),
    "read-only scales": (
        {"k_scale": frozen(np.ones((32, 2), F32))}, InvalidError, -1, "k_scale: is read-only"),
    "read-only groups": (
        {"v_scale": frozen(np.ones((32, 2, 2), F32))}, InvalidError, -1, "v_scale: is read-only"),
    "scales of JAX": (
        {"k_scale": jnp.ones((32, 2))}, InvalidError, -1, "k_scale: is read-only"),
    "scales on another device": (
        {"k_scale": torch.ones(2, device="meta")}, pagedkv.UnsupportedError, -1,
        "k_scale: is not in host memory; torch.ops.pagedkv has operators for CUDA tensors"),
    "the same scales for both": (
        lambda a: dict.fromkeys(("k_scale", "v_scale"), np.ones((32, 2), F32)), InvalidError, -1,
        "k_scale, v_scale: scales of K and of V overlap"),
    "scales in the cache": (
        overlapping, InvalidError, -1, "k_scale: scales and elements overlap"),
    "scales in the rows": (
        with_rows, InvalidError, -1,
        "new_kv, kv_cache: the cache and the rows overlap in memory"),
    "scales of a float cache": (
        {"k_scale": 0.5, "kv_cache": np.zeros((32, 4, 8), np.float16)}, InvalidError, -1,
        "k_scale: scales are for fp8, int8 and int4"),
    "scales of an equal float cache": (
        {"v_scale": 0.5, "kv_cache": np.zeros((32, 4, 8), F32)}, InvalidError, -1,
        "v_scale: scales are for fp8, int8 and int4"),
    "scales of anything": (
        {"v_scale": 0.5, "new_kv": np.zeros((6, 4, 8)), "kv_cache": np.zeros((32, 4, 8))},
        InvalidError, -1, "v_scale: kv_cache holds float64; scales are for float8, int8 and int4"),
    "computed scales of a copy": (
        {"v_scale": np.ones((32, 2), F32), "new_kv": np.zeros((6, 4, 8), I1)}, InvalidError, -1,
        "v_scale: rows in the cache's own dtype bring no scales of their own"),
    "a scale of 0": (
        {"k_scale": 0.0}, RangeError, 0,
        "k_scale: that of head 0 is not finite or is below 2**-126"),
    "a scale below 0": (
        {"v_scale": -1}, RangeError, 0,
        "v_scale: that of head 0 is not finite or is below 2**-126"),
    "a scale that float32 does not hold": (
        {"v_scale": 1e300}, RangeError, 0,
        "v_scale: that of head 0 is not finite or is below 2**-126"),
    "a scale that is subnormal": (
        {"k_scale": np.array([1, 1e-39], F32)}, RangeError, 1,
        "k_scale: that of head 1 is not finite or is below 2**-126"),
    "a scale that is no number": (
        {"v_scale": np.array([1, np.nan], F32)}, RangeError, 1,
        "v_scale: that of head 1 is not finite or is below 2**-126"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input(case: str) -> None:
    """The class, the whole text, and nothing written."""
    change, kind, index, text = BAD[case]
    a = {"new_kv": ROWS.copy(), "kv_cache": np.zeros((32, 4, 8), I1)}
    a |= change(a) if callable(change) else change
    watched = [x for x in a.values() if isinstance(x, np.ndarray)]
    before = [x.tobytes() for x in watched]
    with pytest.raises(kind) as caught:
        pagedkv.kv_cache_update(a.pop("new_kv"), PLAN, a.pop("kv_cache"), 2, page_size=16, **a)
    assert type(caught.value) is kind and str(caught.value) == text
    assert caught.value.index == index  # type: ignore[attr-defined]
    assert isinstance(caught.value, ValueError) or kind is pagedkv.UnsupportedError
    if kind is RangeError:
        assert caught.value.rule == "SCALE"  # type: ignore[attr-defined]
    assert [x.tobytes() for x in watched] == before


def test_the_good_arguments_are_good() -> None:
    cache = np.zeros((32, 4, 8), I1)
    pagedkv.kv_cache_update(ROWS, PLAN, cache, 2, page_size=16)
    check_same(cache, expected("int8"))


def test_bad_input_of_a_gather() -> None:
    cache, out = np.ones((32, 4, 8), I1), np.zeros((6, 4, 8), F32)
    calls: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (lambda: pagedkv.kv_cache_gather(cache, PLAN, 2, out, k_scale=0.0), RangeError,
         "k_scale: that of head 0 is not finite or is below 2**-126"),
        (lambda: pagedkv.kv_cache_gather(cache, PLAN, 2, out.astype(np.int32)), InvalidError,
         "out: holds int32, but kv_cache holds int8; there is no conversion between these dtypes"),
        (lambda: pagedkv.kv_cache_gather(cache, PLAN, 2, out.astype(I1),
                                         k_scale=np.ones((32, 2), F32)), InvalidError,
         "k_scale: rows in the cache's own dtype bring no scales of their own"),
        (lambda: pagedkv.kv_cache_gather(cache, PLAN, 2, out.astype(ml_dtypes.float8_e5m2)),
         InvalidError, "out: holds float8_e5m2, but kv_cache holds int8; there is no conversion "
         "between these dtypes"),
        (lambda: pagedkv.kv_cache_gather(cache, PLAN, 2, out, k_scale=out.reshape(-1)[:64].reshape(
            32, 2)), InvalidError, "out, kv_cache: the cache and the rows overlap in memory"),
    ]
    for call, kind, text in calls:
        with pytest.raises(kind) as caught:
            call()
        assert str(caught.value) == text
        assert not out.any()


def test_bad_input_of_k_and_v_apart() -> None:
    key, value = ROWS, ROWS[..., :6].copy()
    caches = np.zeros((32, 4, 8), I1), np.zeros((32, 4, 6), I1)
    calls: list[tuple[dict[str, Any], str]] = [
        ({"v_scale": np.ones((32, 4, 4), F32)},
         "v_scale: 4 groups do not divide a head of 6 elements"),
        ({"k_scale": np.ones((32, 2), F32)},
         "k_scale: is neither a number nor of shape [4], [32, 4] or [32, 4, groups]"),
        ({"value_cache": caches[1].view(np.uint8)},
         "value_cache: holds uint8, but key_cache holds int8; both must be the same"),
        ({"value": value.astype(np.float16)},
         "value: holds float16, but key holds float32; both must be the same"),
    ]
    for change, text in calls:
        a = {"key": key, "value": value, "slices": PLAN, "key_cache": caches[0],
             "value_cache": caches[1], "num_kv_update_slices": 2} | change
        with pytest.raises(InvalidError) as caught:
            pagedkv.kv_cache_update_separate(**a)
        assert str(caught.value) == text
        assert not caches[0].any() and not caches[1].any()
