"""pagedkv.jax on CPUs: in the donated buffer, one program for every count, under jit and scan and
over devices, with upstream's validator."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pagedkv
import pagedkv.jax
import pytest
from hypothesis import given, settings
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import model
from model import check_same, item_bytes

update = pagedkv.jax.kv_cache_update
PAGE, SLOTS, TOKENS, HEADS, DIM = 16, 96, 12, 4, 8

# A program reports what it was given as one of these; which one is JAX's affair.
RUN_ERRORS = (ValueError, jax.errors.JaxRuntimeError)

DTYPES = ["float32", "float16", "bfloat16", "int8", "uint8", "int16", "int32", "float8_e4m3fn",
          "float8_e5m2", "bool", "complex64"]


def randoms(seed: int, *shape: int, dtype: Any = "float32") -> Any:
    """Random bits, in NumPy."""
    dtype = jnp.dtype(dtype)
    rng = np.random.default_rng(seed)
    high = 2 if dtype == bool else 256
    return rng.integers(0, high, (*shape[:-1], shape[-1] * dtype.itemsize), np.uint8).view(dtype)


def in_jax(array: Any) -> jax.Array:
    """The same bits in JAX's own memory: jnp.asarray may alias NumPy's."""
    return jnp.array(array, copy=True)


SLICES = [[5, 0, 3], [16, 3, 8], [90, 11, 1], [-7, 99, 2**31 - 1]]  # the last is garbage


def case(dtype: Any = "float32", heads: int = HEADS) -> tuple[Any, Any, Any]:
    """new_kv, slices and the cache's first bits, all NumPy's."""
    return (randoms(1, TOKENS, heads, DIM, dtype=dtype), np.array(SLICES, np.int32).T.copy(),
            randoms(2, SLOTS, heads, DIM, dtype=dtype))


def expected(new_kv: Any, slices: Any, cache: Any, n: int) -> Any:
    want = cache.copy()
    model.update(item_bytes(new_kv), model.columns(slices, n), item_bytes(want))
    return want


# ---- in place ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_in_the_donated_buffer(dtype: str) -> None:
    new_kv, slices, cache = case(dtype)
    for n in (3, 0):
        old = in_jax(cache)
        address = old.unsafe_buffer_pointer()
        new = update(in_jax(new_kv), jnp.asarray(slices), old, jnp.array([n], jnp.int32),
                     page_size=PAGE)
        assert isinstance(new, jax.Array) and (new.shape, new.dtype) == (cache.shape, cache.dtype)
        assert new.unsafe_buffer_pointer() == address
        assert old.is_deleted()
        check_same(np.asarray(new), expected(new_kv, slices, cache, n), dtype=dtype, n=n)


def test_64_bit_items() -> None:
    with jax.enable_x64(True):
        new_kv, slices, cache = case("float64")
        new = update(in_jax(new_kv), slices, in_jax(cache), 3, page_size=PAGE)
        check_same(np.asarray(new), expected(new_kv, slices, cache, 3))


def test_numpy_arguments_are_only_read() -> None:
    """NumPy's new_kv and slices will do; JAX may alias their memory, and nobody writes there."""
    new_kv, slices, cache = case()
    keep = [new_kv.copy(), slices.copy(), cache.copy()]
    aliased = jnp.asarray(cache)
    new = update(new_kv, slices, aliased, np.array([3], np.int64), page_size=PAGE)
    check_same(np.asarray(new), expected(*keep, 3))
    for array, old in zip((new_kv, slices, cache), keep, strict=True):
        check_same(array, old)


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), threads=st.integers(1, 3),
       requests=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 40)), max_size=4),
       longest=st.sampled_from([None, 0]))
def test_random_batches(seed: int, requests: Any, longest: int | None, threads: int) -> None:
    """Shapes fixed by padding, as a runner has them, so that there is one compilation."""
    tokens, columns, pages, size = 160, 64, 40, 16
    rng = np.random.default_rng(seed)
    batch = model.make_batch(rng, requests, size, spare_pages=1)
    pagedkv.set_num_threads(threads)
    step = pagedkv.plan(batch.computed, batch.scheduled, batch.pages, page_size=size,
                        max_slice_tokens=longest)
    slices = model.with_garbage(rng, step.slices, step.num_slices, columns - step.num_slices)
    new_kv, cache = randoms(seed, tokens, 2, 8), randoms(seed + 1, pages * size, 2, 8)
    old = in_jax(cache)
    address = old.unsafe_buffer_pointer()
    new = update(new_kv, slices, old, step.num_slices, page_size=size)
    check_same(np.asarray(new), expected(new_kv, slices, cache, step.num_slices), seed=seed,
               requests=requests)
    assert new.unsafe_buffer_pointer() == address


# ---- one program -------------------------------------------------------------------------


def test_one_compilation_serves_every_count() -> None:
    new_kv, slices, cache = case(heads=3)
    compiled: list[str] = []

    def listen(event: str, *_: Any, **__: Any) -> None:
        if "backend_compile" in event:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    # JAX may keep a program for NumPy's arguments and one for its own; never one for a count.
    for counts in ((3, 2, 1, 0, np.int32(2), np.array([1], np.int32)),
                   [jnp.array([n], jnp.int32) for n in (3, 0, 2)]):
        for i, count in enumerate(counts):
            n = int(np.asarray(count).reshape(()))
            compiled.clear()
            new = update(in_jax(new_kv), jnp.asarray(slices), in_jax(cache), count, page_size=PAGE)
            assert i == 0 or not compiled
            check_same(np.asarray(new), expected(new_kv, slices, cache, n), n=n)


def test_on_a_tpu_it_is_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lowered only: there is no TPU here (test_tpu.py has the values)."""
    monkeypatch.setattr(pagedkv.jax, "_platform", lambda *_: "tpu")
    step = jax.jit(lambda cache, new, slices, n: update(new, slices, cache, n, page_size=16),
                   donate_argnums=0)
    shapes = (jax.ShapeDtypeStruct((256, 16, 128), jnp.bfloat16),
              jax.ShapeDtypeStruct((32, 16, 128), jnp.bfloat16),
              jax.ShapeDtypeStruct((3, 8), jnp.int32), jax.ShapeDtypeStruct((1,), jnp.int32))
    module = jax.export.export(step, platforms=["tpu"])(*shapes).mlir_module()
    assert module.count("tpu_custom_call") == 1
    assert "tf.aliasing_output" in module


def test_the_count_is_traced_under_an_outer_jit() -> None:
    new_kv, slices, cache = case()
    traces = []

    def step(cache: Any, new_kv: Any, slices: Any, n: Any) -> Any:
        traces.append(1)
        return update(new_kv * 1, slices, cache, n, page_size=PAGE)

    run = jax.jit(step, donate_argnums=0)
    for n in range(4):
        old = in_jax(cache)
        address = old.unsafe_buffer_pointer()
        new = run(old, new_kv, slices, np.array([n], np.int32))
        check_same(np.asarray(new), expected(new_kv, slices, cache, n), n=n)
        assert new.unsafe_buffer_pointer() == address and old.is_deleted()
    assert len(traces) == 1


def copies_of_the_cache(text: str, shape: tuple[int, ...]) -> list[str]:
    """Lines of a compiled program that copy something of this shape."""
    dims = ",".join(map(str, shape))
    return [line for line in text.splitlines()
            if re.search(rf"f32\[{dims}\]\S* copy(-start)?\(", line)]


def test_no_copy_of_the_cache() -> None:
    """Two layers in one program; donation makes the difference, so the check can fail."""
    new_kv, slices, cache = case()

    def step(first: Any, second: Any, new_kv: Any, slices: Any, n: Any) -> Any:
        return (update(new_kv, slices, first, n, page_size=PAGE),
                update(new_kv + 1, slices, second, n, page_size=PAGE))

    inputs = (cache, cache, new_kv, slices, np.array([3], np.int32))
    texts = [jax.jit(step, donate_argnums=donated).lower(*map(jnp.asarray, inputs)).compile()
             .as_text() for donated in ((0, 1), ())]
    for text in texts:
        assert text.count('custom_call_target="pagedkv_kv_cache_update"') == 2
    assert not copies_of_the_cache(texts[0], cache.shape)
    assert len(copies_of_the_cache(texts[1], cache.shape)) == 2


def test_without_donation_the_old_cache_stays() -> None:
    """Under an outer jit XLA copies first; the argument keeps its bytes."""
    new_kv, slices, cache = case()
    old = in_jax(cache)
    new = jax.jit(lambda c: update(new_kv, slices, c, 3, page_size=PAGE))(old)
    assert new.unsafe_buffer_pointer() != old.unsafe_buffer_pointer()
    check_same(np.asarray(old), cache)
    check_same(np.asarray(new), expected(new_kv, slices, cache, 3))


def test_scan_with_the_cache_in_the_carry() -> None:
    """A step for each row of new tokens, the cache handed on, with no copy of it in the loop."""
    new_kv, slices, cache = case()
    steps = np.stack([new_kv, randoms(7, *new_kv.shape), randoms(8, *new_kv.shape)])
    counts = np.array([[2], [3], [1]], np.int32)

    def run(cache: Any, steps: Any, counts: Any) -> Any:
        def body(carry: Any, step: Any) -> Any:
            rows, n = step
            return update(rows, slices, carry, n, page_size=PAGE), n

        return jax.lax.scan(body, cache, (steps, counts))[0]

    want = cache
    for rows, (n,) in zip(steps, counts, strict=True):
        want = expected(rows, slices, want, int(n))
    compiled = jax.jit(run, donate_argnums=0).lower(cache, steps, counts).compile()
    assert not copies_of_the_cache(compiled.as_text(), cache.shape)
    old = in_jax(cache)
    address = old.unsafe_buffer_pointer()
    new = compiled(old, steps, counts)
    check_same(np.asarray(new), want)
    assert new.unsafe_buffer_pointer() == address


# ---- over devices ------------------------------------------------------------------------


def make_mesh() -> Mesh:
    assert len(jax.devices()) == 4, "conftest.py asks for four devices"
    return Mesh(np.array(jax.devices()), ("x",))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_by_heads_over_four_devices(dtype: str) -> None:
    """Each device writes its own heads of every slot, in its own buffer."""
    new_kv, slices, cache = case(dtype, heads=8)
    mesh, spec = make_mesh(), PartitionSpec(None, "x", None)
    placed = NamedSharding(mesh, spec)
    old = jax.device_put(in_jax(cache), placed)
    addresses = [s.data.unsafe_buffer_pointer() for s in old.addressable_shards]
    new = update(jax.device_put(new_kv, placed), jnp.asarray(slices), old, 3, page_size=PAGE,
                 mesh=mesh, kv_cache_pspec=spec)
    check_same(np.asarray(new), expected(new_kv, slices, cache, 3), dtype=dtype)
    assert new.sharding.is_equivalent_to(placed, 3)
    assert [s.data.unsafe_buffer_pointer() for s in new.addressable_shards] == addresses
    assert old.is_deleted()


def test_by_heads_inside_a_jit() -> None:
    new_kv, slices, cache = case(heads=8)
    mesh, spec = make_mesh(), PartitionSpec(None, "x", None)
    placed = NamedSharding(mesh, spec)

    def step(cache: Any, new_kv: Any, n: Any) -> Any:
        return update(new_kv, slices, cache, n, page_size=PAGE, mesh=mesh, kv_cache_pspec=spec)

    run = jax.jit(step, donate_argnums=0, in_shardings=(placed, placed, None),
                  out_shardings=placed)
    count = np.array([3], np.int32)
    text = run.lower(cache, new_kv, count).compile().as_text()
    assert not copies_of_the_cache(text, (SLOTS, 2, DIM))
    assert "all-gather" not in text and "all-reduce" not in text
    new = run(jax.device_put(in_jax(cache), placed), jax.device_put(new_kv, placed), count)
    check_same(np.asarray(new), expected(new_kv, slices, cache, 3))


def test_errors_over_devices() -> None:
    new_kv, slices, cache = case(heads=8)
    mesh, spec = make_mesh(), PartitionSpec(None, "x", None)
    old = jax.device_put(in_jax(cache), NamedSharding(mesh, spec))
    with pytest.raises(RUN_ERRORS, match="num_kv_update_slices=5"):
        update(new_kv, slices, old, 5, page_size=PAGE, mesh=mesh,
               kv_cache_pspec=spec).block_until_ready()


def test_a_mesh_needs_a_spec() -> None:
    new_kv, slices, cache = case()
    old = in_jax(cache)
    with pytest.raises(ValueError, match="kv_cache_pspec"):
        update(new_kv, slices, old, 3, page_size=PAGE, mesh=make_mesh())
    check_same(np.asarray(old), cache)


# ---- bad input ---------------------------------------------------------------------------


RUN_TIME: dict[str, tuple[int, int, int, int, str]] = {
    # row, column, value, count, words
    "n = N + 1": (0, 0, 5, 5, r"num_kv_update_slices=5 is not within 0\.\.4"),
    "n = -1": (0, 0, 5, -1, r"num_kv_update_slices=-1"),
    "n = 2**31 - 1": (0, 0, 5, 2**31 - 1, r"num_kv_update_slices=2147483647"),
    "kv_cache_start": (0, 2, -1, 3, "slice 2"),
    "new_kv_start": (1, 1, -1, 3, "slice 1"),
    "slice_len": (2, 0, -1, 3, "slice 0"),
    "kv_cache_end": (0, 2, SLOTS, 3, "slice 2"),
    "new_kv_end": (1, 2, TOKENS, 3, "slice 2"),
    "sum over int32": (0, 1, 2**31 - 1, 3, "slice 1"),
    "garbage is real": (0, 0, 5, 4, "slice 3"),
}


@pytest.mark.parametrize("name", list(RUN_TIME))
def test_when_the_program_runs(name: str) -> None:
    """The error comes when it runs; test_xla_abi.py shows that the buffer is not touched."""
    row, column, value, n, words = RUN_TIME[name]
    new_kv, slices, cache = case()
    slices[row, column] = value
    with pytest.raises(RUN_ERRORS, match=words):
        update(new_kv, slices, in_jax(cache), n, page_size=PAGE).block_until_ready()
    old = in_jax(cache)
    run = jax.jit(lambda c, count: update(new_kv, slices, c, count, page_size=PAGE))
    with pytest.raises(RUN_ERRORS, match=words):
        run(old, np.array([n], np.int32)).block_until_ready()
    check_same(np.asarray(old), cache, name=name)
    # And the process is well: the next call works.
    good = case()
    new = update(good[0], good[1], in_jax(cache), 3, page_size=PAGE)
    check_same(np.asarray(new), expected(*good, 3))


X = jnp.float32
SHAPES: dict[str, tuple[dict[str, Callable[[], Any]], str]] = {
    "new_kv, axes": ({"new_kv": lambda: jnp.ones((TOKENS, DIM))}, "new_kv"),
    "new_kv, heads": ({"new_kv": lambda: jnp.ones((TOKENS, HEADS + 1, DIM))}, "new_kv"),
    "new_kv, head_dim": ({"new_kv": lambda: jnp.ones((TOKENS, HEADS, DIM + 1))}, "new_kv"),
    "new_kv, dtype": ({"new_kv": lambda: jnp.ones((TOKENS, HEADS, DIM), jnp.bfloat16)}, "new_kv"),
    "new_kv, list": ({"new_kv": lambda: [[[1.0]]]}, "new_kv"),
    "new_kv, None": ({"new_kv": lambda: None}, "new_kv"),
    "kv_cache, axes": ({"kv_cache": lambda: jnp.zeros((6, PAGE, HEADS, DIM))}, "kv_cache"),
    "kv_cache, NumPy": ({"kv_cache": lambda: np.zeros((SLOTS, HEADS, DIM), np.float32)},
                        "kv_cache"),
    "kv_cache, list": ({"kv_cache": lambda: [1.0]}, "kv_cache"),
    "slices, dtype": ({"slices": lambda: jnp.zeros((3, 4))}, "slices"),
    "slices, int64": ({"slices": lambda: np.zeros((3, 4), np.int64)}, "slices"),
    "slices, uint32": ({"slices": lambda: jnp.zeros((3, 4), jnp.uint32)}, "slices"),
    "slices, [N, 3]": ({"slices": lambda: jnp.zeros((4, 3), jnp.int32)}, "slices"),
    "slices, axes": ({"slices": lambda: jnp.zeros(12, jnp.int32)}, "slices"),
    "slices, None": ({"slices": lambda: None}, "slices"),
    "n, shape": ({"num_kv_update_slices": lambda: jnp.ones(2, jnp.int32)}, "num_kv_update_slices"),
    "n, 0-d": ({"num_kv_update_slices": lambda: jnp.int32(1)}, "num_kv_update_slices"),
    "n, float": ({"num_kv_update_slices": lambda: jnp.ones(1)}, "num_kv_update_slices"),
    "n, float number": ({"num_kv_update_slices": lambda: 1.0}, "num_kv_update_slices"),
    "n, None": ({"num_kv_update_slices": lambda: None}, "num_kv_update_slices"),
    "n, str": ({"num_kv_update_slices": lambda: "1"}, "num_kv_update_slices"),
    "n, 2**32 + 1": ({"num_kv_update_slices": lambda: 2**32 + 1}, "num_kv_update_slices"),
    "n, [2**32 + 1]": ({"num_kv_update_slices": lambda: np.array([2**32 + 1])},
                       "num_kv_update_slices"),
}


@pytest.mark.parametrize("name", list(SHAPES))
def test_shapes_and_dtypes(name: str) -> None:
    """A ValueError that names the argument, before anything is donated."""
    change, argument = SHAPES[name]
    new_kv, slices, cache = case()
    old = in_jax(cache)
    arguments = {"new_kv": new_kv, "slices": slices, "kv_cache": old, "num_kv_update_slices": 3}
    arguments |= {key: make() for key, make in change.items()}
    with pytest.raises(ValueError, match=f"{argument}[:=]"):
        update(**arguments, page_size=PAGE).block_until_ready()
    if "2**32" not in name:  # that one is found when the program runs
        check_same(np.asarray(old), cache, name=name)
    if isinstance(arguments["kv_cache"], np.ndarray):
        assert not arguments["kv_cache"].any()


def test_a_deleted_cache() -> None:
    new_kv, slices, cache = case()
    old = in_jax(cache)
    update(new_kv, slices, old, 3, page_size=PAGE)
    with pytest.raises((RuntimeError, ValueError), match="deleted"):
        update(new_kv, slices, old, 3, page_size=PAGE)


def test_items_of_less_than_a_byte_are_refused() -> None:
    """XLA packs its int4 as it likes."""
    cache = jnp.zeros((SLOTS, HEADS, DIM), jnp.int4)
    with pytest.raises((NotImplementedError, *RUN_ERRORS)):
        update(jnp.ones((TOKENS, HEADS, DIM), jnp.int4), case()[1], cache, 3,
               page_size=PAGE).block_until_ready()


# ---- upstream's validator ------------------------------------------------------------------

# Row, column, value -> what the message holds; page 32, 128 new tokens, 640 slots.
INVALID: dict[str, tuple[list[tuple[int, int, int]], str]] = {
    "1": ([(1, 0, -1)], "new_kv_start=-1 must be greater than"),
    "2": ([(0, 0, -1)], "kv_cache_start=-1 must be greater than"),
    "3": ([(2, 0, 0)], "slice_len=0 must be less or equal to"),
    "4": ([(2, 0, 33)], "slice_len=33 must be less or equal to"),
    "5": ([(1, 0, 128)],
          "new_kv_start=128 + slice_len=7 must be less or equal to new_token_num=128"),
    "6": ([(0, 0, 640)],
          "kv_cache_start=640 + slice_len=7 must be less or equal to kv_cache_token_num=640"),
    "7": ([(0, 0, 31), (2, 0, 32)], "Each slice must reside in the same page"),
    "8": ([(1, 1, 8)], "is expeced to equal to"),
    "9": ([(0, 4, 96)], "Overlap detected in kv_cache intervals"),
}


def upstream_slices(page: int) -> Any:
    lengths = [7, page, page, 1, 1, 1, 9]
    starts = [2 * page - 7, 2 * page, 3 * page, 4 * page + 6, 5 * page + 7, 6 * page + 8,
              15 * page + 3]
    return np.array([starts, np.cumsum([0, *lengths[:-1]]), lengths], np.int32)


@pytest.mark.parametrize("jit", [True, False])
@pytest.mark.parametrize("name", list(INVALID))
def test_the_validator(name: str, jit: bool) -> None:
    changes, words = INVALID[name]
    slices = upstream_slices(32)
    for row, column, value in changes:
        slices[row, column] = value
    cache = in_jax(randoms(3, 640, 2, 128))
    before = np.asarray(cache).copy()
    with jax.disable_jit(not jit), pytest.raises(ValueError, match=re.escape(words)):
        update(jnp.zeros((128, 2, 128)), jnp.asarray(slices), cache, jnp.array([7], jnp.int32),
               page_size=32, dynamic_validate_inputs=True)
    check_same(np.asarray(cache), before, name=name)


def test_the_validator_takes_what_is_right_and_looks_at_n_columns() -> None:
    slices = np.concatenate([upstream_slices(32), np.full((3, 2), -5, np.int32)], axis=1)
    new_kv, cache = randoms(4, 128, 2, 128), randoms(3, 640, 2, 128)
    want = expected(new_kv, slices, cache, 7)
    for jit in (True, False):
        with jax.disable_jit(not jit):
            new = update(new_kv, slices, in_jax(cache), 7, page_size=32,
                         dynamic_validate_inputs=True)
        check_same(np.asarray(new), want, jit=jit)
    for n in (8, 10, -1):
        with pytest.raises(ValueError):
            update(new_kv, slices, in_jax(cache), n, page_size=32, dynamic_validate_inputs=True)


def test_the_validator_of_a_traced_call() -> None:
    """It has no values to look at, and says so."""
    new_kv, slices, cache = case()
    with pytest.raises(ValueError, match="dynamic_validate_inputs"):
        jax.jit(lambda c, s: update(new_kv, s, c, 3, page_size=PAGE,
                                    dynamic_validate_inputs=True))(cache, slices)


def test_disable_jit() -> None:
    new_kv, slices, cache = case()
    with jax.disable_jit():
        new = update(new_kv, slices, in_jax(cache), 3, page_size=PAGE)
    check_same(np.asarray(new), expected(new_kv, slices, cache, 3))


def test_jax_lowers_to_the_same_call() -> None:
    """For a CUDA device, seen from a host without one."""
    shape = jax.ShapeDtypeStruct
    arrays = (shape((8, 2, 4), np.float32), shape((3, 4), np.int32),
              shape((64, 2, 4), np.float32), shape((1,), np.int32))
    body = jax.jit(pagedkv.jax._update_custom_call, donate_argnums=2)
    text = jax.export.export(body, platforms=["cuda"],
                             disabled_checks=[jax.export.DisabledSafetyCheck.custom_call(
                                 "pagedkv_kv_cache_update")])(*arrays).mlir_module()
    assert "@pagedkv_kv_cache_update" in text and "output_operand_alias" in text
