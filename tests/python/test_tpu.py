"""The TPU kernel in Pallas' TPU interpret mode, byte for byte against a NumPy model.

DMAs happen when they are waited for, scratch begins as NaN, a read out of bounds
raises, and races are looked for.  No TPU is needed.
"""

from __future__ import annotations

import dataclasses
import functools
import re

import hypothesis
from hypothesis import strategies as st
import jax
from jax import export
from jax.experimental.pallas import tpu as pltpu
from jax._src.pallas.mosaic.interpret import interpret_pallas_call as interpreter
import jax.numpy as jnp
import numpy as np
import pytest

from pagedkv import tpu

# By default all DMAs share one entry of the vector clocks, and no race between
# two of them is seen.
INTERPRET = pltpu.InterpretParams(
    dma_execution_mode="on_wait", detect_races=True, vector_clock_size=64,
    out_of_bounds_reads="raise", uninitialized_memory="nan")

# Columns behind n: whatever the kernel took from them would show.
GARBAGE = np.array([-1, 2**31 - 1, -(2**31), 3], np.int32)


@pytest.fixture(autouse=True)
def fresh_simulator():
    np.random.seed(0)  # the simulator draws from it which DMAs share an entry of the clocks
    pltpu.reset_tpu_interpret_mode_state()
    yield
    pltpu.reset_tpu_interpret_mode_state()


@dataclasses.dataclass
class Counts:
    copies: int = 0
    blocks: int = 0


@pytest.fixture
def counts(monkeypatch):
    """DMAs started and blocks of the grid visited by programs traced in this test."""
    seen = Counts()
    start = interpreter.dma_start

    def count(*args, **kwargs):
        seen.copies += 1
        return start(*args, **kwargs)

    monkeypatch.setattr(interpreter, "dma_start", count)
    return seen


def interpret_and_count(seen):
    def visit(token, *_):
        seen.blocks += 1
        return token

    return dataclasses.replace(INTERPRET, grid_point_recorder=visit)


def program(interpret=INTERPRET, **options):
    update = functools.partial(tpu.kv_cache_update, interpret=interpret, **options)
    return jax.jit(update, donate_argnums=2)


def random_bits(rng, shape, dtype):
    """Every bit pattern of the dtype: NaN payloads, infinities and subnormals too."""
    dtype = jnp.dtype(dtype)
    return rng.integers(0, 256, (*shape, dtype.itemsize), np.uint8).view(dtype)[..., 0]


def as_bytes(array):
    return np.ascontiguousarray(np.asarray(array)).view(np.uint8)


def make_slices(columns, capacity):
    """int32 [3, capacity]: the columns, then garbage."""
    slices = np.resize(GARBAGE, (3, capacity))
    slices[:, :len(columns)] = np.array(columns, np.int32).reshape(-1, 3).T
    return slices


def model(new_kv, slices, kv_cache, count):
    """The contract in NumPy: what the cache's bytes must be."""
    out = kv_cache.copy()
    if not 0 <= count <= slices.shape[1]:
        return out
    for start, source, length in slices[:, :count].T.tolist():
        inside = start + length <= len(kv_cache) and source + length <= len(new_kv)
        if length > 0 and start >= 0 and source >= 0 and inside:
            rows = new_kv[source:source + length]
            out[start:start + length, :, :rows.shape[2]] = rows
            out[start:start + length, :, rows.shape[2]:] = 0
    return out


def run(update, new_kv, slices, kv_cache, count):
    out = update(
        jnp.asarray(new_kv), jnp.asarray(slices), jnp.asarray(kv_cache),
        jnp.array([count], jnp.int32))
    out.block_until_ready()
    assert interpreter.races is None or not interpreter.races.races_found
    return out


def check(update, new_kv, slices, kv_cache, count):
    out = run(update, new_kv, slices, kv_cache, count)
    assert out.dtype == kv_cache.dtype
    want = model(new_kv, slices, kv_cache, count)
    np.testing.assert_array_equal(as_bytes(out), as_bytes(want))


def small_case(rng, dtype=jnp.bfloat16, tokens=64, slots=128, heads=2, head_dim=128):
    return (random_bits(rng, (tokens, heads, head_dim), dtype),
            random_bits(rng, (slots, heads, head_dim), dtype))


@pytest.mark.parametrize("num_slices_per_block", [None, 4, 8])
@pytest.mark.parametrize("head_dim", [128, 256])
@pytest.mark.parametrize("heads", [2, 16])
@pytest.mark.parametrize("page_size", [32, 33])
def test_upstream_grid(page_size, heads, head_dim, num_slices_per_block):
    p = page_size
    lengths = [7, p, p, 1, 1, 1, 9]
    starts = [2 * p - 7, 2 * p, 3 * p, 4 * p + 6, 5 * p + 7, 6 * p + 8, 15 * p + 3]
    sources = np.cumsum([0, *lengths[:-1]]).tolist()
    slices = make_slices(list(zip(starts, sources, lengths)), 16)
    new_kv, cache = small_case(
        np.random.default_rng(0), tokens=128, slots=20 * p, heads=heads, head_dim=head_dim)
    update = program(page_size=p, num_slices_per_block=num_slices_per_block)
    check(update, new_kv, slices, cache, 7)


@pytest.mark.parametrize("dtype,heads", [
    (jnp.bfloat16, 2), (jnp.float32, 2), (jnp.float8_e4m3fn, 4), (jnp.float8_e5m2, 4),
    (jnp.int8, 4), (jnp.uint8, 8), (jnp.int16, 2), (jnp.uint16, 2), (jnp.int32, 1),
    (jnp.uint32, 1)])
def test_every_dtype_keeps_every_bit(dtype, heads):
    new_kv, cache = small_case(np.random.default_rng(1), dtype, heads=heads)
    slices = make_slices([(5, 40, 11), (96, 0, 32), (127, 63, 1)], 6)
    check(program(page_size=16, num_slices_per_block=2), new_kv, slices, cache, 3)


TOKENS, SLOTS, COLUMNS, DEPTH = 48, 96, 12, 4


@st.composite
def batches(draw):
    """Slices that do not overlap in the cache, among them empty and bad ones; any count."""
    bounds = sorted(draw(st.sets(st.integers(0, SLOTS), min_size=2, max_size=COLUMNS)))
    columns = []
    for start, end in zip(bounds, bounds[1:]):
        length = draw(st.integers(0, min(end - start, TOKENS)))
        columns.append((start, draw(st.integers(0, TOKENS - length)), length))
    bad = st.sampled_from([
        (-1, 0, 4), (0, -1, 4), (0, 0, -4), (SLOTS - 3, 0, 4), (0, TOKENS - 3, 4),
        (2**31 - 1, 0, 2**31 - 1), (0, 2**31 - 1, 2), (SLOTS, TOKENS, 1), (-(2**31), 0, 2**31 - 1)])
    for _ in range(draw(st.integers(0, COLUMNS - len(columns)))):
        columns.insert(draw(st.integers(0, len(columns))), draw(bad))
    return columns, draw(st.sampled_from([len(columns)] * 3 + [*range(-1, COLUMNS + 2)]))


def test_random_batches_in_one_program():
    """Counts below 0 and above N too; rows of 8 tokens, so that longer slices are common."""
    new_kv, cache = small_case(np.random.default_rng(2), tokens=TOKENS, slots=SLOTS)
    update = program(page_size=16, num_slices_per_block=DEPTH, max_slice_tokens=8)

    @hypothesis.settings(max_examples=40, deadline=None, derandomize=True, database=None)
    @hypothesis.given(batches())
    def every(batch):
        columns, count = batch
        # Behind the drawn columns is garbage that no buffer holds: a count that takes
        # it in finds slices to skip.
        slices = np.full((3, COLUMNS), 2**31 - 1, np.int32)
        slices[:, :len(columns)] = np.array(columns, np.int64).astype(np.int32).T
        check(update, new_kv, slices, cache, count)

    every()
    assert update._cache_size() == 1


@pytest.mark.parametrize("count", [0, 1, 4, 5, 7, 8, 9, -1, 2**31 - 1, -(2**31)])
def test_count(count, counts):
    """n = N = 8 writes all; n below 0 or above N writes nothing and visits no block."""
    new_kv, cache = small_case(np.random.default_rng(3))
    columns = [(16 * i + i, 8 * i, i + 1) for i in range(8)]
    update = program(interpret_and_count(counts), page_size=16, num_slices_per_block=4)
    check(update, new_kv, make_slices(columns, 8), cache, count)
    real = count if 0 <= count <= 8 else 0
    assert counts.copies == 2 * real
    assert counts.blocks == -(-real // 4)


def test_one_program_serves_every_count():
    new_kv, cache = small_case(np.random.default_rng(4))
    slices = make_slices([(16 * i, 8 * i, 8) for i in range(8)], 8)
    traced = []

    def update(*args):
        traced.append(1)
        return tpu.kv_cache_update(
            *args, page_size=16, num_slices_per_block=4, interpret=INTERPRET)

    update = jax.jit(update, donate_argnums=2)
    for count in (0, 1, 3, 4, 5, 8):
        check(update, new_kv, slices, cache, count)
    assert len(traced) == 1 and update._cache_size() == 1


def test_empty_slices_cost_no_copy(counts):
    """Zero tokens between others, at both ends, with starts that no buffer has."""
    new_kv, cache = small_case(np.random.default_rng(5))
    columns = [(0, 0, 0), (10, 3, 5), (0, 0, 0), (9999, -7, 0), (50, 20, 16), (128, 64, 0)]
    update = program(page_size=16, num_slices_per_block=2)
    check(update, new_kv, make_slices(columns, 8), cache, 6)
    assert counts.copies == 2 * 2


@pytest.mark.parametrize("bad", [
    (-1, 0, 4), (0, -1, 4), (0, 0, -1), (125, 0, 4), (0, 61, 4), (128, 0, 1), (0, 64, 1),
    (0, 0, 65), (2**31 - 1, 0, 1), (0, 2**31 - 1, 1), (2**31 - 1, 2**31 - 1, 2**31 - 1),
    (-(2**31), -(2**31), -(2**31)), (-4, 0, 8)])
def test_a_slice_out_of_bounds_is_skipped_whole(bad, counts):
    new_kv, cache = small_case(np.random.default_rng(6))
    update = program(page_size=16, num_slices_per_block=2)
    check(update, new_kv, make_slices([(20, 0, 8), bad, (40, 8, 8)], 4), cache, 3)
    assert counts.copies == 2 * 2


def test_slices_that_end_where_the_buffers_end():
    new_kv, cache = small_case(np.random.default_rng(7))
    slices = make_slices([(0, 48, 16), (64, 0, 64)], 2)
    check(program(page_size=64), new_kv, slices, cache, 2)


@pytest.mark.parametrize("max_slice_tokens,pieces", [(None, 10), (24, 7), (64, 4), (7, 19)])
def test_a_merged_slice_goes_in_rows(max_slice_tokens, pieces, counts):
    """Slices longer than a page, of 100, 5 and 20 tokens, in rows of max_slice_tokens."""
    new_kv, cache = small_case(np.random.default_rng(8), tokens=128, slots=256)
    update = program(
        page_size=16, num_slices_per_block=2, max_slice_tokens=max_slice_tokens)
    columns = [(3, 1, 100), (110, 101, 5), (200, 106, 20)]
    check(update, new_kv, make_slices(columns, 4), cache, 3)
    rows = max_slice_tokens or 16
    assert pieces == sum(-(-length // rows) for _, _, length in columns)
    assert counts.copies == 2 * pieces


def test_overlapping_destinations_harm_nothing_else():
    """It also shows that the simulator finds a race between two stores."""
    new_kv, cache = small_case(np.random.default_rng(9))
    columns = [(10, 0, 8), (14, 30, 8), (12, 20, 9), (11, 40, 6), (60, 8, 4)]
    slices = jnp.asarray(make_slices(columns, 5))
    update = program(page_size=16, num_slices_per_block=8)
    out = update(jnp.asarray(new_kv), slices, jnp.asarray(cache), jnp.array([5], jnp.int32))
    got, want = as_bytes(out), as_bytes(model(new_kv, np.asarray(slices), cache, 5))
    assert interpreter.races.races_found
    np.testing.assert_array_equal(got[:11], want[:11])
    np.testing.assert_array_equal(got[22:], want[22:])


def test_a_store_before_its_load_is_a_race(monkeypatch):
    """The simulator finds the mistake that this kernel could make."""
    def hasty(load, store):
        store.start()
        load.wait()

    monkeypatch.setattr(tpu, "_pass_on", hasty)
    new_kv, cache = small_case(np.random.default_rng(9))
    slices = jnp.asarray(make_slices([(16 * i, 8 * i, 8) for i in range(8)], 8))
    update = program(page_size=16, num_slices_per_block=8)
    update(jnp.asarray(new_kv), slices, jnp.asarray(cache), jnp.array([8], jnp.int32))
    assert interpreter.races.races_found


def test_the_next_block_waits_for_the_one_before():
    """One row of scratch: every copy uses it, and none may overtake another."""
    new_kv, cache = small_case(np.random.default_rng(10))
    columns = [(12 * i, 6 * i, 6) for i in range(9)]
    update = program(page_size=16, num_slices_per_block=1)
    check(update, new_kv, make_slices(columns, 9), cache, 9)


@pytest.mark.parametrize("head_dim", [64, 80])
def test_shorter_head_vectors_are_padded_with_zeros(head_dim):
    rng = np.random.default_rng(11)
    # Plain NaNs: on x86 without bf16 instructions XLA drops the payload of what it pads, as
    # integers too.
    bits = random_bits(rng, (32, 2, head_dim), jnp.bfloat16).view(np.uint16)
    new_kv = np.where((bits & 0x7fff) > 0x7f80, bits & 0x8000 | 0x7fc0, bits).view(jnp.bfloat16)
    cache = random_bits(rng, (64, 2, tpu.padded_head_dim(head_dim)), jnp.bfloat16)
    check(program(page_size=16), new_kv, make_slices([(5, 2, 9)], 2), cache, 1)


@pytest.mark.parametrize("dtype,heads,head_dim", [
    (jnp.float8_e4m3fn, 2, 128), (jnp.bfloat16, 3, 80), (jnp.int8, 1, 64)])
def test_any_shape_when_the_cache_is_row_major(dtype, heads, head_dim):
    new_kv, cache = small_case(
        np.random.default_rng(12), dtype, heads=heads, head_dim=head_dim)
    update = program(page_size=16, row_major=True)
    check(update, new_kv, make_slices([(5, 2, 9), (100, 20, 16)], 4), cache, 2)


@pytest.mark.parametrize("tokens,slots,columns", [(0, 32, 4), (8, 0, 4), (8, 32, 0)])
def test_nothing_to_write(tokens, slots, columns):
    new_kv, cache = small_case(np.random.default_rng(13), tokens=tokens, slots=slots)
    check(program(page_size=16), new_kv, np.zeros((3, columns), np.int32), cache, columns)


def test_count_as_an_int():
    new_kv, cache = small_case(np.random.default_rng(14))
    slices = make_slices([(5, 2, 9), (60, 20, 16)], 4)
    for count in (1, np.int64(1), np.int32(1), jnp.int32(1), -3):
        out = tpu.kv_cache_update(
            jnp.asarray(new_kv), jnp.asarray(slices), jnp.asarray(cache), count, page_size=16,
            interpret=INTERPRET)
        want = model(new_kv, slices, cache, int(count))
        np.testing.assert_array_equal(as_bytes(out), as_bytes(want))


def test_export_for_tpu_keeps_the_alias():
    avals = [
        jax.ShapeDtypeStruct((128, 16, 128), jnp.bfloat16),
        jax.ShapeDtypeStruct((3, 64), jnp.int32),
        jax.ShapeDtypeStruct((1024, 16, 128), jnp.bfloat16),
        jax.ShapeDtypeStruct((1,), jnp.int32),
    ]
    module = export.export(program(None, page_size=16), platforms=["tpu"])(*avals).mlir_module()
    assert module.count("@tpu_custom_call") == 1
    assert re.search(r"%arg2: tensor<1024x16x128xbf16> \{[^}]*tf.aliasing_output = 0", module)
    # The operands: blocks in the grid, slices, n, new_kv, kv_cache.
    alias = r"output_operand_alias<\s*output_tuple_indices = \[\],\s*operand_index = 4,"
    assert re.search(alias, module)


@pytest.mark.parametrize("page,heads,head_dim,dtype,limit_mib,want", [
    (128, 16, 128, jnp.bfloat16, 40, 64),  # 512 KiB a row
    (256, 16, 128, jnp.bfloat16, 40, 32),
    (16, 16, 128, jnp.bfloat16, 40, 64),
    (128, 64, 96, jnp.bfloat16, 40, 16),  # 96 elements take 128
    (128, 16, 128, jnp.float8_e4m3fn, 40, 64),
    (128, 2, 128, jnp.float8_e4m3fn, 2, 16),  # 2 heads of 8 bits take a word: 64 KiB
    (128, 10, 128, jnp.bfloat16, 9, 16),  # 10 heads take two tiles of 8: 512 KiB
    (128, 16, 128, jnp.bfloat16, 1.5, 1)])
def test_slices_per_block(page, heads, head_dim, dtype, limit_mib, want):
    limit = int(limit_mib * 2**20)
    assert tpu.num_slices_per_block_for(page, heads, head_dim, dtype, limit) == want


def test_padding():
    assert [tpu.padded_head_dim(d) for d in (1, 64, 128, 129, 192, 256)] == [
        128, 128, 128, 256, 256, 256]
    heads = (1, 2, 3, 4, 5, 8, 9, 16, 20)
    padded = {
        jnp.int8: [4, 4, 4, 4, 8, 8, 16, 16, 24],
        jnp.bfloat16: [2, 2, 4, 4, 8, 8, 16, 16, 24],
        jnp.float32: [1, 2, 4, 4, 8, 8, 16, 16, 24],
    }
    for dtype, want in padded.items():
        assert [tpu.padded_num_combined_heads(c, dtype) for c in heads] == want
        assert [tpu.fills_tiles(c, 128, dtype) for c in heads] == [
            c == w for c, w in zip(heads, want)]
    assert not tpu.fills_tiles(8, 64, jnp.bfloat16)


GOOD = {
    "new_kv": np.zeros((32, 2, 128), jnp.bfloat16),
    "slices": np.zeros((3, 8), np.int32),
    "kv_cache": np.zeros((64, 2, 128), jnp.bfloat16),
    "num_kv_update_slices": np.zeros(1, np.int32),
    "page_size": 32,
}


@pytest.mark.parametrize("name,value", [
    ("new_kv", np.zeros((32, 2, 128), np.float32)),
    ("new_kv", np.zeros((32, 256), jnp.bfloat16)),
    ("new_kv", np.zeros((32, 4, 128), jnp.bfloat16)),
    ("new_kv", np.zeros((32, 2, 256), jnp.bfloat16)),
    ("new_kv", [1, 2, 3]),
    ("slices", np.zeros((3, 8), np.int64)),
    ("slices", np.zeros((8, 3), np.int32)),
    ("slices", np.zeros(24, np.int32)),
    ("slices", None),
    ("kv_cache", np.zeros((2, 32, 2, 128), jnp.bfloat16)),
    ("kv_cache", np.zeros((64, 2, 128), np.float16)),
    ("kv_cache", np.zeros((64, 2, 64), jnp.bfloat16)),
    ("kv_cache", np.zeros((64, 3, 128), jnp.bfloat16)),
    ("kv_cache", np.zeros((64, 0, 128), jnp.bfloat16)),
    ("kv_cache", np.zeros((63, 2, 128), jnp.bfloat16)),
    ("num_kv_update_slices", np.zeros(1, np.int64)),
    ("num_kv_update_slices", np.zeros(2, np.int32)),
    ("num_kv_update_slices", np.zeros(1, np.float32)),
    ("num_kv_update_slices", 2**31),
    ("num_kv_update_slices", 1.0),
    ("page_size", 0),
    ("page_size", 32.0),
    ("page_size", 2**31),
    ("num_slices_per_block", 0),
    ("num_slices_per_block", 2**20),
    ("max_slice_tokens", -1),
    ("vmem_limit_bytes", 0),
    ("vmem_limit_bytes", 2**20),
])
def test_bad_input_names_the_argument(name, value):
    with pytest.raises(ValueError, match=name):
        tpu.kv_cache_update(**(GOOD | {name: value}))
