"""Updates and gathers of host arrays against the model, byte for byte."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
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

import model
from model import DTYPES, POISON, Arena, RawDLPack, check_same

# NumPy's view of the bits, and PyTorch's name of the dtype; int4 PyTorch does not have.
TORCH = {
    "float16": (np.int16, torch.float16), "float32": (np.int32, torch.float32),
    "float64": (np.int64, torch.float64), "int8": (np.int8, torch.int8),
    "uint8": (np.uint8, torch.uint8), "int16": (np.int16, torch.int16),
    "bfloat16": (np.int16, torch.bfloat16), "float8_e4m3fn": (np.int8, torch.float8_e4m3fn),
    "float8_e5m2": (np.int8, torch.float8_e5m2),
}


class DLPackOnly:
    """An array of a library that nobody knows: DLPack 1.0 and nothing else."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __dlpack__(self, **arguments: Any) -> Any:
        return self._array.__dlpack__(**arguments)

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()


class OldDLPack(DLPackOnly):
    """The same from before DLPack 1.0: it does not know max_version."""

    def __dlpack__(self, stream: Any = None) -> Any:  # type: ignore[override]
        assert stream is None
        return self._array.__dlpack__()


def as_torch(array: Any) -> torch.Tensor:
    """The same memory as a tensor of the same dtype."""
    bits, dtype = TORCH[str(array.dtype)]
    return torch.from_numpy(array.view(bits)).view(dtype)


def wrapped(array: Any, kind: str) -> Any:
    """The array as another library would pass it; NumPy's own where that cannot hold it."""
    if kind == "numpy":
        return array
    if kind == "torch":
        return as_torch(array) if str(array.dtype) in TORCH else array
    plain = array.dtype.isbuiltin == 1  # NumPy exports no dtype that it was taught
    carrier = array if plain else as_torch(array) if str(array.dtype) in TORCH else None
    if carrier is None:
        return array
    return DLPackOnly(carrier) if kind == "dlpack" else OldDLPack(carrier)


KINDS = ("numpy", "torch", "dlpack", "old dlpack")


# ---- random batches ----------------------------------------------------------------


def make_cache(layout: str, pages: int, size: int, heads: int, dim: int, dtype: Any) -> Arena:
    if layout == "flat":
        return Arena.make((pages * size, heads, dim), dtype)
    if layout == "paged":
        return Arena.make((pages, size, heads, dim), dtype)
    if layout == "hnd":  # [pages, heads, page_size, dim] in memory, as .swapaxes(1, 2)
        return Arena.make((pages, size, heads, dim), dtype, order=(0, 2, 1, 3))
    if layout == "padded":
        return Arena.make((pages, size, heads, dim), dtype, pad=(3, 1, 2, 5))
    assert layout == "padded flat"
    return Arena.make((pages * size, heads, dim), dtype, pad=(0, 4, 1))


LAYOUTS = ("flat", "paged", "hnd", "padded", "padded flat")


def make_rows(source: str, tokens: int, heads: int, dims: list[int], dtype: Any) -> list[Arena]:
    """New K (and V): dense, with gaps, or both as views into one fused QKV array."""
    if source == "dense":
        return [Arena.make((tokens, heads, dim), dtype) for dim in dims]
    if source == "gaps":
        return [Arena.make((tokens, heads, dim), dtype, pad=(0, 3, 1)) for dim in dims]
    query = 2 * heads * dims[0]
    fused = Arena.make((tokens, query + heads * sum(dims)), dtype)
    views, at = [], query
    for dim in dims:
        views.append(fused.columns(at, heads, dim))
        at += heads * dim
    return views


CASES = st.fixed_dictionaries({
    "seed": st.integers(0, 2**32 - 1),
    "page_size": st.sampled_from([1, 2, 3, 8, 16, 33]),
    "requests": st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=5),
    "heads": st.integers(1, 4),
    "dims": st.lists(st.sampled_from([1, 2, 3, 8, 33, 64]), min_size=1, max_size=2),
    "layout": st.sampled_from(LAYOUTS),
    "source": st.sampled_from(["dense", "gaps", "fused"]),
    "scatter": st.booleans(),
    "max_slice": st.sampled_from([None, 0, 40]),
    "extra": st.integers(0, 5),
    "threads": st.integers(1, 3),
    "kind": st.sampled_from(KINDS),
    "read_soon": st.booleans(),
})


@pytest.mark.parametrize("dtype", list(DTYPES))
@settings(max_examples=40)
@given(case=CASES)
def test_random_batches(dtype: str, case: dict[str, Any]) -> None:
    """Plan, update, compare the whole cache and its padding, gather back, compare that."""
    rng = np.random.default_rng(case["seed"])
    size, heads, dims, kind = (case[k] for k in ("page_size", "heads", "dims", "kind"))
    batch = model.make_batch(rng, case["requests"], size, scatter=case["scatter"])
    pagedkv.set_num_threads(case["threads"])

    slices, n = pagedkv.plan(batch.computed, batch.scheduled, batch.pages, page_size=size,
                             max_slice_tokens=case["max_slice"], num_pages=batch.num_pages)
    expected = model.plan(batch.computed, batch.scheduled, batch.pages, size, case["max_slice"])
    assert model.columns(slices, n) == expected, case
    slices = model.with_garbage(rng, slices, n, case["extra"])

    rows = make_rows(case["source"], batch.num_tokens, heads, dims, DTYPES[dtype])
    for part in rows:
        part.fill(rng)
    caches = [make_cache(case["layout"], batch.num_pages, size, heads, d, DTYPES[dtype])
              for d in dims]
    want = [cache.copy() for cache in caches]
    before = [part.memory.copy() for part in rows]
    for part, cache in zip(rows, want, strict=True):
        model.update(part.bytes, expected, cache.bytes)

    new = [wrapped(part.array, kind) for part in rows]
    old = [wrapped(cache.array, kind) for cache in caches]
    given_slices, count = wrapped(slices, kind), n
    if len(dims) == 1:
        result = pagedkv.kv_cache_update(new[0], given_slices, old[0], count, page_size=size,
                                         read_soon=case["read_soon"])
        assert result is old[0]
    else:
        pagedkv.kv_cache_update_separate(*new, given_slices, *old, count, page_size=size,
                                         read_soon=case["read_soon"])
    for i in range(len(dims)):
        check_same(caches[i].memory, want[i].memory, what=f"cache {i}", dtype=dtype, **case)
        check_same(rows[i].memory, before[i], what=f"source {i}", dtype=dtype, **case)

    out = make_rows(case["source"] if len(dims) == 1 else "gaps", batch.num_tokens, heads, dims,
                    DTYPES[dtype])
    back = [part.copy() for part in out]
    for cache, part in zip(want, back, strict=True):
        model.gather(cache.bytes, expected, part.bytes)
    read = [wrapped(part.array, kind) for part in out]
    if len(dims) == 1:
        result = pagedkv.kv_cache_gather(old[0], given_slices, count, read[0], page_size=size)
        assert result is read[0]
    else:
        pagedkv.kv_cache_gather_separate(*old, given_slices, count, *read, page_size=size)
    for i in range(len(dims)):
        check_same(out[i].memory, back[i].memory, what=f"gathered {i}", dtype=dtype, **case)
        check_same(out[i].bytes, rows[i].bytes, what=f"read back {i}", dtype=dtype, **case)
        check_same(caches[i].memory, want[i].memory, what=f"read cache {i}", dtype=dtype, **case)


def test_the_check_can_fail() -> None:
    """One wrong bit anywhere, padding included, is found and named."""
    cache = make_cache("padded", 2, 4, 2, 3, DTYPES["float16"])
    for at in (0, cache.memory.size // 2, cache.memory.size - 1):
        other = cache.copy()
        other.memory[at] ^= 1
        with pytest.raises(AssertionError, match=f"byte {at} is .* seed=7"):
            check_same(other.memory, cache.memory, seed=7)


def test_nan_payloads_stay() -> None:
    """Signalling and quiet NaNs with payloads, in every kind of float."""
    for dtype, bits in (("float32", np.uint32), ("float16", np.uint16), ("bfloat16", np.uint16)):
        patterns = np.array([0x7F800001 >> (32 - 8 * bits().itemsize), 1, 0x7FC0], bits)
        if bits is np.uint32:
            patterns = np.array([0x7F800001, 0xFFC12345, 0x00000001], bits)
        rows = np.broadcast_to(patterns.view(DTYPES[dtype]), (5, 2, 3))
        cache = np.zeros((32, 2, 3), DTYPES[dtype])
        pagedkv.kv_cache_update(rows, np.array([[7], [0], [5]], np.int32), cache, 1, page_size=16)
        check_same(cache[7:12], rows, dtype=dtype)
        assert not model.item_bytes(cache)[:7].any() and not model.item_bytes(cache)[12:].any()


# ---- what arguments may be ---------------------------------------------------------


def small() -> tuple[Any, Any, Any, Any]:
    """rows, slices with one garbage column, a poisoned cache, and what it becomes."""
    rows = np.arange(6 * 2 * 4, dtype=np.float32).reshape(6, 2, 4)
    slices = np.array([[5, 24, -9], [0, 2, 77], [2, 4, 2**31 - 1]], np.int32)
    cache = np.full((32, 2, 4), -1, np.float32)
    want = cache.copy()
    want[5:7], want[24:28] = rows[0:2], rows[2:6]
    return rows, slices, cache, want


COUNTS: dict[str, Callable[[int], Any]] = {
    "int": int,
    "np.int32 [1]": lambda n: np.array([n], np.int32),
    "np.int64 [1]": lambda n: np.array([n], np.int64),
    "np.int32 0-d": lambda n: np.array(n, np.int32),
    "np.int64 0-d": lambda n: np.array(n, np.int64),
    "np.int32 scalar": np.int32,
    "np.int64 scalar": np.int64,
    "torch int32 [1]": lambda n: torch.tensor([n], dtype=torch.int32),
    "torch int64 0-d": torch.tensor,
    "jax int32 [1]": lambda n: jnp.array([n], jnp.int32),
    "jax int32 0-d": jnp.int32,
    "DLPack": lambda n: DLPackOnly(np.array([n], np.int32)),
    "old DLPack": lambda n: OldDLPack(np.array([n], np.int32)),
}


@pytest.mark.parametrize("kind", list(COUNTS))
def test_counts(kind: str) -> None:
    for n in range(3):
        rows, slices, cache, want = small()
        if n < 2:
            want[24:28] = -1
        if n < 1:
            want[5:7] = -1
        pagedkv.kv_cache_update(rows, slices, cache, COUNTS[kind](n), page_size=16)
        check_same(cache, want, kind=kind, n=n)


@pytest.mark.parametrize("make", [torch.from_numpy, jnp.asarray, DLPackOnly, OldDLPack])
def test_slices_of_other_libraries(make: Any) -> None:
    rows, slices, cache, want = small()
    pagedkv.kv_cache_update(rows, make(slices), cache, 2, page_size=16)
    check_same(cache, want, make=make)


def test_slices_with_a_row_stride() -> None:
    """Columns of a wider array, and rows that are far apart."""
    rows, slices, cache, want = small()
    wide = np.full((6, 9), -1, np.int32)
    wide[::2, 4:7] = slices
    pagedkv.kv_cache_update(rows, wide[::2, 4:7], cache, 2, page_size=16)
    check_same(cache, want)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float8_e4m3fn, jnp.int8])
def test_new_kv_of_jax(dtype: Any) -> None:
    """A JAX array is a source like any other; written it is not."""
    rows = jnp.arange(48).reshape(6, 2, 4).astype(dtype)
    cache = np.zeros((32, 2, 4), rows.dtype)
    want = cache.copy()
    want[3:9] = np.asarray(rows)
    pagedkv.kv_cache_update(rows, np.array([[3], [0], [6]], np.int32), cache, 1, page_size=16)
    check_same(cache, want, dtype=dtype)


def test_int4_items_are_bytes() -> None:
    """int4 of ml_dtypes takes a byte an item; all eight bits of it are kept."""
    assert np.dtype(ml_dtypes.int4).itemsize == 1
    rows = np.arange(256, dtype=np.uint8).reshape(4, 1, 64).view(ml_dtypes.int4)
    cache = np.zeros((16, 1, 64), ml_dtypes.int4)
    pagedkv.kv_cache_update(rows, np.array([[9], [0], [4]], np.int32), cache, 1, page_size=16)
    check_same(cache.view(np.uint8)[9:13], rows.view(np.uint8))


def test_a_cache_of_four_axes_says_its_page_size() -> None:
    """page_size then does not matter, not even its default."""
    rows, slices, cache, want = small()
    for arguments in ({}, {"page_size": 16}, {"page_size": 5}):
        paged = np.full((4, 8, 2, 4), -1, np.float32)
        pagedkv.kv_cache_update(rows, slices, paged, 2, **arguments)
        check_same(paged, want, **arguments)
    bare = np.full((4, 8, 2, 4), -1, np.float32)
    pagedkv.kv_cache_update(rows, slices, DLPackOnly(bare), 2, page_size=8)
    check_same(bare, want)


def test_merged_slices_cross_pages_that_are_adjacent_and_that_are_not() -> None:
    rows = np.random.default_rng(5).standard_normal((70, 2, 6)).astype(np.float32)
    slices = np.array([[3], [0], [70]], np.int32)
    for layout in LAYOUTS:
        cache = make_cache(layout, 10, 8, 2, 6, np.float32)
        want = cache.copy()
        model.update(model.item_bytes(rows), [(3, 0, 70)], want.bytes)
        pagedkv.kv_cache_update(rows, slices, cache.array, 1, page_size=8)
        check_same(cache.memory, want.memory, layout=layout)


def test_a_source_row_may_repeat_and_a_source_may_be_read_only() -> None:
    row = np.arange(8, dtype=np.float32).reshape(1, 2, 4)
    rows = np.broadcast_to(row, (6, 2, 4))
    assert not rows.flags.writeable and rows.strides[0] == 0
    _, slices, cache, want = small()
    want[5:7] = want[24:28] = row
    pagedkv.kv_cache_update(rows, slices, cache, 2, page_size=16)
    check_same(cache, want)


def test_axes_of_one_element_have_any_stride() -> None:
    """NumPy and PyTorch give such axes strides that mean nothing."""
    for shape in ((6, 1, 4), (6, 2, 1), (1, 1, 1), (1, 2, 4)):
        rows = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        odd = np.lib.stride_tricks.as_strided(
            rows, shape, [s if n > 1 else 999 for n, s in zip(shape, rows.strides, strict=True)])
        cache = np.zeros((16, *shape[1:]), np.float32)
        want = cache.copy()
        want[2:2 + shape[0]] = rows
        slices = np.array([[2], [0], [shape[0]]], np.int32)
        pagedkv.kv_cache_update(odd, slices, cache, 1, page_size=16)
        check_same(cache, want, shape=shape)


def test_nothing_to_write() -> None:
    """n = 0, lengths of 0, no columns, no tokens: nothing happens, and nothing is wrong."""
    rows, slices, cache, _ = small()
    before = cache.copy()
    empty = np.zeros((3, 0), np.int32)
    zeros = np.array([[0, 32], [6, 0], [0, 0]], np.int32)
    pagedkv.kv_cache_update(rows, slices, cache, 0, page_size=16)
    pagedkv.kv_cache_update(rows, empty, cache, 0, page_size=16)
    pagedkv.kv_cache_update(rows, zeros, cache, 2, page_size=16)
    pagedkv.kv_cache_update(rows[:0], empty, cache, 0, page_size=16)
    pagedkv.kv_cache_update(torch.zeros(0, 2, 4), torch.zeros(3, 0, dtype=torch.int32), cache, 0,
                            page_size=16)
    pagedkv.kv_cache_update(jnp.zeros((0, 2, 4)), jnp.zeros((3, 0), jnp.int32), cache, 0,
                            page_size=16)
    pagedkv.kv_cache_gather(cache, empty, 0, np.zeros((0, 2, 4), np.float32), page_size=16)
    pagedkv.kv_cache_gather(cache, empty, 0, torch.zeros(0, 2, 4), page_size=16)
    pagedkv.kv_cache_update(rows[:0], np.array([[3], [0], [0]], np.int32), cache, 1, page_size=16)
    check_same(cache, before)


def test_overlapping_destinations_harm_nothing_else() -> None:
    rows, _, cache, _ = small()
    slices = np.array([[5, 6], [0, 2], [3, 3]], np.int32)
    pagedkv.kv_cache_update(rows, slices, cache, 2, page_size=16)
    assert (cache[:5] == -1).all() and (cache[9:] == -1).all()
    check_same(cache[5], rows[0])
    check_same(cache[8], rows[4])


def test_strict_takes_an_exact_plan() -> None:
    batch = model.make_batch(np.random.default_rng(2), [(3, 20), (0, 9), (40, 1)], 8)
    slices, n = pagedkv.plan(batch.computed, batch.scheduled, batch.pages, page_size=8)
    rows = np.random.default_rng(3).standard_normal((30, 2, 4)).astype(np.float32)
    cache = make_cache("flat", batch.num_pages, 8, 2, 4, np.float32)
    want = cache.copy()
    model.update(model.item_bytes(rows), model.columns(slices, n), want.bytes)
    pagedkv.kv_cache_update(rows, slices, cache.array, n, page_size=8, strict=True)
    check_same(cache.memory, want.memory)
    out = np.zeros_like(rows)
    pagedkv.kv_cache_gather(cache.array, slices, n, out, page_size=8, strict=True)
    check_same(out, rows)


# ---- threads -----------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("layout", ["flat", "hnd", "padded"])
def test_large_payloads_over_threads(threads: int, layout: str) -> None:
    """Over 4 MiB, so that threads are used; rows of 51 bytes, so that parts meet inside lines."""
    rng = np.random.default_rng(threads)
    heads, dim, size = 3, 17, 16
    lengths = [1] * 12000 + [16] * 2800 + [20000, 0, 13333]
    rng.shuffle(lengths)
    starts = np.cumsum([0, *lengths[:-1]])
    gaps = np.cumsum(rng.integers(0, 3, len(lengths)))
    slices = np.array([starts + gaps, starts, lengths], np.int32)
    tokens = sum(lengths)
    pages = -(-(tokens + int(gaps[-1])) // size)
    rows = Arena.make((tokens, heads, dim), np.uint8).fill(rng)
    assert rows.array.nbytes > 4 << 20
    cache = make_cache(layout, pages, size, heads, dim, np.uint8)
    want = cache.copy()
    model.update(rows.bytes, model.columns(slices, slices.shape[1]), want.bytes)

    pagedkv.set_num_threads(threads)
    assert pagedkv.get_num_threads() == threads
    for _ in range(20):  # a call that returns before its workers do is seen in some of them
        cache.memory[...] = POISON
        pagedkv.kv_cache_update(rows.array, slices, cache.array, slices.shape[1], page_size=size)
        check_same(cache.memory, want.memory, threads=threads, layout=layout)
    out = Arena.make((tokens, heads, dim), np.uint8)
    pagedkv.kv_cache_gather(cache.array, slices, slices.shape[1], out.array, page_size=size)
    check_same(out.bytes, rows.bytes, threads=threads, layout=layout)


@pytest.mark.parametrize("threads", [1, 3])
def test_two_python_threads_at_once(threads: int) -> None:
    """Disjoint slots of one cache: even slots from one thread, odd ones from another."""
    pagedkv.set_num_threads(threads)
    slots, rounds = 8192, 30
    cache = np.full((slots, 4, 40), -1, np.float32)
    rows = np.random.default_rng(1).standard_normal((slots, 4, 40)).astype(np.float32)
    assert rows.nbytes > 4 << 20
    start, failures = threading.Barrier(2), []

    def write(first: int) -> None:
        own = np.arange(first, slots, 2, dtype=np.int32)
        slices = np.stack([own, own, np.ones_like(own)])
        try:
            start.wait()
            for _ in range(rounds):
                pagedkv.kv_cache_update(rows, slices, cache, len(own), page_size=16)
        except BaseException as error:  # noqa: BLE001 - handed to the main thread
            failures.append(error)

    workers = [threading.Thread(target=write, args=(first,)) for first in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures
    check_same(cache, rows, threads=threads)


def let_another_thread_run(work: Callable[[], None], attempts: int) -> bool:
    """Does a thread that only waits for the interpreter's lock get it during work()?

    With this switch interval nobody is asked to give the lock up, so another thread runs only
    where work() lets go of it.
    """
    interval = sys.getswitchinterval()
    gate, ready, progress = threading.Lock(), [], []
    gate.acquire()

    def waiter() -> None:
        ready.append(True)
        gate.acquire()
        progress.append(True)

    thread = threading.Thread(target=waiter, daemon=True)
    sys.setswitchinterval(1000.0)
    try:
        thread.start()
        while not ready:
            time.sleep(0.001)
        time.sleep(0.05)  # it now waits at the gate, or for the lock that is let go of here
        gate.release()
        for _ in range(attempts):
            work()
            if progress:
                return True
        return False
    finally:
        sys.setswitchinterval(interval)
        thread.join(30)


def test_the_interpreter_is_free_during_an_update() -> None:
    rows = np.zeros((4096, 16, 128), np.float32)
    cache = np.zeros((4096, 16, 128), np.float32)
    slices = np.array([[0], [0], [4096]], np.int32)

    def update() -> None:
        pagedkv.kv_cache_update(rows, slices, cache, 1, page_size=16)

    def hold() -> None:  # the control: Python code that keeps the lock for 20 ms
        end = time.perf_counter() + 0.02
        while time.perf_counter() < end:
            pass

    assert not let_another_thread_run(hold, 2)
    assert let_another_thread_run(update, 2000)


FORK = """
import os, signal, threading
import numpy as np
import pagedkv

rows = np.random.default_rng(0).integers(0, 256, (40000, 2, 64), np.uint8)
slices = np.stack([np.arange(40000)[::-1], np.arange(40000), np.ones(40000)]).astype(np.int32)

def update():
    cache = np.zeros_like(rows)
    pagedkv.kv_cache_update(rows, slices, cache, 40000, page_size=16)
    return np.array_equal(cache, rows[::-1])

def in_child(check):
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # a child that hangs ends
        os._exit(0 if check() else 1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == 0, f"the child ended with {status}"
    return True

def whole():  # the right bytes, with workers of the child's own
    return update() and pagedkv.get_num_threads() == 3 and len(os.listdir("/proc/self/task")) == 3

pagedkv.set_num_threads(3)
assert update()
for _ in range(3):
    in_child(whole)
    in_child(lambda: whole() and in_child(whole))
    assert update()

stop = False  # and while another thread is in the middle of a call
def keep_busy():
    while not stop:
        update()

thread = threading.Thread(target=keep_busy)
thread.start()
for _ in range(10):
    in_child(update)
stop = True
thread.join()
print("done")
"""


def test_fork_after_a_threaded_call() -> None:
    """In a process of its own: this one has JAX's threads, which nothing saves over a fork."""
    run = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True,
                         timeout=120, check=False)
    assert (run.returncode, run.stdout) == (0, "done\n"), run.stderr


def test_threads_of_the_environment() -> None:
    code = "import pagedkv; print(pagedkv.get_num_threads())"
    for text, want in (("5", "5"), ("0", None), ("", None), ("x", None)):
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                             env=os.environ | {"PAGEDKV_NUM_THREADS": text}, check=True)
        assert run.stdout.strip() == (want or str(min(16, len(os.sched_getaffinity(0)))))


# ---- owners ------------------------------------------------------------------------


def mortal(array: Any) -> Any:
    """A view that nobody keeps; when it dies its memory is spoilt, and the test sees that."""
    view = array.view()
    weakref.finalize(view, array.fill, 77)
    return view


class Fresh:
    """Each export is a view that nothing but the capsule keeps."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __dlpack__(self, **arguments: Any) -> Any:
        return mortal(self.array).__dlpack__(**arguments)

    def __dlpack_device__(self) -> Any:
        return (1, 0)


class FreshInterface:
    """The same for NumPy's array interface: only the dictionary keeps the view, as it does for
    a NumPy scalar."""

    def __init__(self, array: Any) -> None:
        self.array, self.dtype = array, array.dtype

    @property
    def __array_interface__(self) -> dict[str, Any]:
        view = mortal(self.array)
        return view.__array_interface__ | {"ref": view}


class Dropper:
    """A count that, while the call opens it, makes everything else let go."""

    def __init__(self, n: int, drop: Callable[[], None]) -> None:
        self.n, self.drop = np.array([n], np.int32), drop

    def __dlpack__(self, **arguments: Any) -> Any:
        self.drop()
        gc.collect()
        return self.n.__dlpack__(**arguments)

    def __dlpack_device__(self) -> Any:
        return (1, 0)


BIG = (2048, 4, 256)  # 8 MiB of float32


def test_temporaries() -> None:
    """Nobody holds the arguments but the call."""
    cache = np.zeros(BIG, np.float32)
    pagedkv.kv_cache_update(np.full(BIG, 3, np.float32), np.array([[0], [0], [2048]], np.int32),
                            cache, np.int32(1), page_size=16)
    assert (cache == 3).all()
    result = pagedkv.kv_cache_update(
        torch.full(BIG, 4.0), torch.tensor([[0], [0], [2048]], dtype=torch.int32),
        torch.zeros(BIG), torch.tensor([1]), page_size=16)
    assert bool((result == 4).all())


def test_owners_that_only_the_call_keeps() -> None:
    """All four arguments are gone but for the capsules; a call that lets go early writes 77s."""
    for threads in (1, 3):
        pagedkv.set_num_threads(threads)
        rows, cache = np.full(BIG, 5, np.float32), np.zeros(BIG, np.float32)
        slices, n = np.array([[0], [0], [2000]], np.int32), np.array([1], np.int32)
        seen = np.empty(BIG, np.float32)
        keep = Fresh(cache)
        weak = mortal(cache)  # the control: without an owner the memory is spoilt at once
        del weak
        assert (cache == 77).all()
        cache[...] = 0
        pagedkv.kv_cache_update(Fresh(rows), Fresh(slices), DLPackOnly(cache), Fresh(n),
                                page_size=16)
        seen[...] = cache
        assert (seen[:2000] == 5).all() and (seen[2000:] == 0).all()
        assert (rows == 77).all() and (slices == 77).all() and (n == 77).all()  # let go by now
        slices[:, 0], n[0] = (0, 0, 2000), 1
        out = np.zeros(BIG, np.float32)
        cache[...] = 6
        pagedkv.kv_cache_gather(keep, slices, 1, out, page_size=16)
        assert (out[:2000] == 6).all() and (out[2000:] == 0).all() and (cache == 77).all()


def test_owners_that_only_an_array_interface_keeps() -> None:
    rows, cache = np.full((8, 2, 4), 5, ml_dtypes.bfloat16), np.zeros((32, 2, 4), "bfloat16")
    slices, n = np.array([[3], [0], [8]], np.int32), np.array(1, np.int64)
    pagedkv.kv_cache_update(FreshInterface(rows), FreshInterface(slices), cache,
                            FreshInterface(n), page_size=16)
    assert (cache[3:11] == 5).all() and (cache == 5).sum() == 64
    assert (rows == 77).all() and (slices == 77).all() and n == 77


@pytest.mark.parametrize("versioned", [True, False])
def test_dlpack_by_hand(versioned: bool) -> None:
    """Offsets, no strides, no deleter; each export is given back once."""
    for options in ({}, {"byte_offset": 64}, {"strides": False}, {"with_deleter": False},
                    {"byte_offset": 192, "strides": False}):
        rows, slices, cache, want = small()
        exports = [RawDLPack(a, versioned=versioned, **options)
                   for a in (rows, slices, cache, np.array([2], np.int32))]
        pagedkv.kv_cache_update(*exports, page_size=16)
        check_same(cache, want, versioned=versioned, **options)
        deleted = [len(e.deleted) for e in exports]
        assert deleted == [int(options.get("with_deleter", True))] * 4
        with pytest.raises(pagedkv.RangeError):
            pagedkv.kv_cache_update(*exports[:3], 9, page_size=16)
        assert [len(e.deleted) for e in exports[:3]] == [2 * d for d in deleted[:3]]


@pytest.mark.parametrize("kind", ["numpy", "bfloat16", "torch", "dlpack", "jax"])
def test_owners_deleted_while_the_call_runs(kind: str) -> None:
    make: dict[str, Callable[[], Any]] = {
        "numpy": lambda: np.full(BIG, 6, np.float32),
        "bfloat16": lambda: np.full(BIG, 6, ml_dtypes.bfloat16),
        "torch": lambda: torch.full(BIG, 6.0),
        "dlpack": lambda: DLPackOnly(np.full(BIG, 6, np.float32)),
        "jax": lambda: jnp.full(BIG, 6, jnp.float32),
    }
    box = [make[kind](), np.array([[0], [0], [2048]], np.int32)]
    cache = np.zeros(BIG, ml_dtypes.bfloat16 if kind == "bfloat16" else np.float32)
    pagedkv.kv_cache_update(*box, cache, Dropper(1, box.clear), page_size=16)
    assert not box and (cache == 6).all()


def refusals() -> dict[str, tuple[type[Exception], tuple[Any, Any, Any, Any]]]:
    """Calls that fail early and late, each with arrays of its own."""
    read_only = np.zeros((32, 2, 4), np.float32)
    read_only.flags.writeable = False
    far = np.array([[31], [0], [2]], np.int32)
    rows, slices, cache, _ = small()
    other = np.zeros((32, 2, 4), np.uint8)
    return {
        "range": (pagedkv.RangeError, (rows, far, cache, 1)),
        "count": (pagedkv.RangeError, (rows, slices, cache, np.array([9], np.int32))),
        "dtype": (pagedkv.InvalidError, (rows, slices, other, 1)),
        "read-only": (pagedkv.InvalidError, (rows, slices, read_only, 1)),
        "no array": (pagedkv.InvalidError, (rows, slices, cache, object())),
        "shape": (pagedkv.InvalidError, (rows[:, :1], slices, cache, 1)),
        "tensors": (pagedkv.RangeError, (torch.from_numpy(rows), torch.from_numpy(far),
                                         torch.from_numpy(cache), torch.tensor([1]))),
        "dlpack": (pagedkv.RangeError, (DLPackOnly(rows), OldDLPack(far), DLPackOnly(cache),
                                        DLPackOnly(np.array([1], np.int32)))),
        "scalar": (pagedkv.RangeError, (rows, slices, cache, np.int32(9))),
        "jax": (pagedkv.InvalidError, (rows, slices, jnp.zeros((32, 2, 4)), 1)),
    }


@pytest.mark.parametrize("name", list(refusals()))
def test_references_return(name: str) -> None:
    """After success and after each kind of error every count is what it was."""
    kind, arguments = refusals()[name]
    inner = [getattr(a, "_array", a) for a in arguments]

    def counts() -> list[int]:
        gc.collect()
        return [sys.getrefcount(a) for a in (*arguments, *inner)]

    before = counts()
    for _ in range(5):
        with pytest.raises(kind):
            pagedkv.kv_cache_update(*arguments, page_size=16)
    assert counts() == before


@pytest.mark.parametrize("wrap", [np.asarray, torch.from_numpy, DLPackOnly, OldDLPack])
def test_references_return_after_success(wrap: Any) -> None:
    rows, slices, cache, want = small()
    count = np.array([2], np.int32)
    arguments = [wrap(a) for a in (rows, slices, cache, count)]
    owners = [rows, slices, cache, count, *arguments]
    before = [sys.getrefcount(a) for a in owners]
    for _ in range(5):
        pagedkv.kv_cache_update(*arguments, page_size=16)
    assert [sys.getrefcount(a) for a in owners] == before
    check_same(cache, want)


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_failing_calls_do_not_leak() -> None:
    """10,000 calls of each kind; a leak of one small object a call is over both bounds."""
    calls = [arguments for _, arguments in refusals().values()]

    def fail(times: int) -> None:
        for arguments in calls:
            for _ in range(times):
                try:
                    pagedkv.kv_cache_update(*arguments, page_size=16)
                except pagedkv.Error:
                    continue
                raise AssertionError("the call did not fail")

    fail(500)
    gc.collect()
    blocks, memory = sys.getallocatedblocks(), resident_bytes()
    fail(10_000)
    gc.collect()
    assert sys.getallocatedblocks() - blocks < 1000
    assert resident_bytes() - memory < 4 << 20


def test_signals_reach_python_after_a_call() -> None:
    """The lock that was released is held again: a handler runs as usual."""
    seen: list[int] = []
    old = signal.signal(signal.SIGUSR1, lambda number, _: seen.append(number))
    try:
        rows, slices, cache, want = small()
        os.kill(os.getpid(), signal.SIGUSR1)
        pagedkv.kv_cache_update(rows, slices, cache, 2, page_size=16)
        assert seen == [signal.SIGUSR1]
        check_same(cache, want)
    finally:
        signal.signal(signal.SIGUSR1, old)
