"""PyTorch and JAX on a real GPU: the CPU's bytes, graphs, streams, compiled programs.

Run by itself, with PAGEDKV_TEST_GPU=1 and a build that has the device code.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pagedkv
import pytest

import model
from model import check_same

pytestmark = pytest.mark.gpu


def torch_has_gpu() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return bool(torch.cuda.is_available())


def jax_has_gpu() -> bool:
    try:
        import jax

        return len(jax.devices("gpu")) > 0
    except (ImportError, RuntimeError):
        return False


if torch_has_gpu():
    import pagedkv.torch
    import torch

    import tensors
    from tensors import HEADS, PAGE, SLOTS, TOKENS, arguments, bits, expected, randoms

    ops = torch.ops.pagedkv


@pytest.fixture
def cuda() -> Any:
    if not torch_has_gpu():
        pytest.skip("PyTorch has no GPU here")
    pagedkv.torch.open_cuda()
    return torch.device("cuda", torch.cuda.current_device())


def to(a: dict[str, Any], device: Any) -> dict[str, Any]:
    return {name: tensor.to(device) for name, tensor in a.items()}


def call(a: dict[str, Any]) -> None:
    ops.kv_cache_update_(a["kv_cache"], a["kv"], a["slot_mapping"], a["num_kv_update_slices"],
                         PAGE, 8)


# ---- PyTorch -------------------------------------------------------------------------------


def test_devices(cuda: Any) -> None:
    assert pagedkv.cuda_device_count() >= 1
    with pytest.raises(pagedkv.InvalidError):
        pagedkv.torch.open_cuda(pagedkv.cuda_device_count())


def test_every_dtype(cuda: Any) -> None:
    for dtype in tensors.DTYPES:
        for n in range(4):
            a = arguments(dtype, n)
            d = to(a, cuda)
            call(d)
            call(a)
            check_same(bits(d["kv_cache"].cpu()), bits(a["kv_cache"]), dtype=dtype, n=n)


def test_upstream_call(cuda: Any) -> None:
    a = arguments()
    d = to(a, cuda)
    result = ops.kv_cache_update_op(d["kv"], d["slot_mapping"], d["kv_cache"],
                                    d["num_kv_update_slices"], PAGE, 8)
    assert result.data_ptr() == d["kv_cache"].data_ptr()
    check_same(bits(result.cpu()), expected(a))


@pytest.mark.parametrize("layout", ["nhd", "hnd", "kv first"])
@pytest.mark.parametrize("source", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("to_dtype", ["same", "float8_e4m3fn", "float8_e5m2", "bfloat16"])
def test_layouts_and_conversions(cuda: Any, layout: str, source: str, to_dtype: str) -> None:
    """A few hundred requests out of a fused output, against the CPU's operator."""
    rng = np.random.default_rng(7)
    dtype = getattr(torch, source)
    cache_dtype = dtype if to_dtype == "same" else getattr(torch, to_dtype)
    pages, heads, dim, requests = 600, 4, 64, 300
    scheduled = rng.integers(1, 20, requests)
    plan = pagedkv.plan(rng.integers(0, 12, requests), scheduled,
                        rng.permutation(pages).reshape(requests, 2), page_size=PAGE)
    total = int(scheduled.sum())
    fused = (torch.from_numpy(rng.standard_normal((total, 3 * heads, dim))) * 100).to(dtype)
    shape = (pages, PAGE, heads, dim) if layout != "hnd" else (pages, heads, PAGE, dim)
    whole = torch.from_numpy(rng.integers(0, 200, (2, *shape), np.uint8)).to(cache_dtype)

    def run(device: str) -> Any:
        both, rows = whole.to(device), fused.to(device)
        if layout == "kv first":
            both = both.transpose(0, 1).contiguous().transpose(0, 1)
        caches = [both[i] if layout != "hnd" else both[i].transpose(1, 2) for i in range(2)]
        ops.kv_cache_update_separate_(
            *caches, rows[:, heads:2 * heads], rows[:, 2 * heads:],
            torch.from_numpy(plan.slices).to(device),
            torch.tensor([plan.num_slices], dtype=torch.int32, device=device), PAGE)
        return bits(both.cpu())

    check_same(run("cuda"), run("cpu"), layout=layout)


def test_current_stream(cuda: Any) -> None:
    """The kernel waits for what stands before it on the current stream, and for nothing else."""
    a = arguments()
    want = expected(a)
    d = to(a, cuda)
    late = torch.zeros_like(d["kv"])
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        late.copy_(d["kv"])
        call(d | {"kv": late})
        assert not stream.query()  # the call did not wait
    stream.synchronize()
    check_same(bits(d["kv_cache"].cpu()), want)


def test_nothing_is_allocated_or_waited_for(cuda: Any) -> None:
    d = to(arguments(), cuda)
    call(d)
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        call(d)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


def test_graph(cuda: Any) -> None:
    """One captured graph for every count, and for garbage past it."""
    columns = 64
    d = to(arguments(), cuda)
    d["slot_mapping"] = torch.zeros(3, columns, dtype=torch.int32, device=cuda)
    word = torch.zeros(1, dtype=torch.int32, device=cuda)
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        pagedkv.torch.kv_cache_update(d["kv_cache"], d["kv"], d["slot_mapping"],
                                      d["num_kv_update_slices"], page_size=PAGE, status_word=word)
    rng = np.random.default_rng(9)
    for n in (0, 1, columns, 3, -1, columns + 1, columns, 0, 7):
        rows = rng.integers(0, TOKENS, columns)
        slices = np.stack([rng.permutation(SLOTS)[:columns], rows, np.ones(columns, int)])
        real = n if 0 <= n <= columns else 0
        slices[:, real:] = rng.integers(-2**31, 2**31, (3, columns - real))
        host = arguments() | {"kv": randoms(n + 5, TOKENS, HEADS, tensors.DIM)}
        host["slot_mapping"] = torch.from_numpy(slices.astype(np.int32))
        host["num_kv_update_slices"] = torch.tensor([n], dtype=torch.int32)
        for name, tensor in host.items():
            d[name].copy_(tensor)
        word.zero_()
        graph.replay()
        host["num_kv_update_slices"][0] = real
        check_same(bits(d["kv_cache"].cpu()), expected(host), n=n)
        assert word.item() == (0 if real == n else pagedkv.torch.FAULT_COUNT)


def test_slices_out_of_bounds(cuda: Any) -> None:
    a = arguments(n=4)  # the last is garbage
    d = to(a, cuda)
    word = torch.zeros(1, dtype=torch.int32, device=cuda)
    pagedkv.torch.kv_cache_update(d["kv_cache"], d["kv"], d["slot_mapping"],
                                  d["num_kv_update_slices"], page_size=PAGE, status_word=word)
    assert word.item() == 1
    check_same(bits(d["kv_cache"].cpu()), expected(arguments(n=3)))


@pytest.mark.parametrize("most", [None, 0])
def test_plans_in_a_graph(cuda: Any, most: int | None) -> None:
    """Planned and written by the device, against the host's plan; then a batch that is wrong."""
    requests, width, size = 12, 4, PAGE
    d = to(arguments(), cuda) | {
        name: torch.zeros(shape, dtype=torch.int32, device=cuda) for name, shape in (
            ("lens", requests), ("starts", requests + 1), ("table", (requests, width)),
            ("seqs", 1), ("slices", (3, 64)), ("n", 1), ("word", 1))}
    slots = torch.zeros(TOKENS, dtype=torch.int64, device=cuda)
    other = [torch.zeros_like(d["slices"]), torch.zeros_like(d["n"])]
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        pagedkv.torch.plan_(d["lens"], d["starts"], d["table"], d["seqs"], slices=d["slices"],
                            num_slices=d["n"], page_size=size, max_slice_tokens=most,
                            status_word=d["word"])
        pagedkv.torch.plan_slot_mapping_(
            slots, slices=other[0], num_slices=other[1], page_size=size, max_slice_tokens=most,
            query_start_loc=d["starts"], num_seqs=d["seqs"])
        ops.kv_cache_update_(d["kv_cache"], d["kv"], d["slices"], d["n"], size, 8)
    rng = np.random.default_rng(11)
    for scheduled in ([5, 7], [1] * 12, [12], [], [2, 0, 3]):
        n = len(scheduled)
        computed = rng.integers(0, 5, n)
        table = rng.permutation(SLOTS // size)[:max(n, 1)].reshape(-1, 1)
        table = np.resize(table, (n, 1)) if n <= SLOTS // size else np.arange(n).reshape(-1, 1) % 6
        plan = pagedkv.plan(computed, scheduled, table, page_size=size, max_slice_tokens=most,
                            capacity=64)
        mapping = np.full(TOKENS, -1)
        for start, row, length in plan.slices[:, :plan.num_slices].T:
            mapping[row:row + length] = np.arange(start, start + length)
        host = arguments()
        d["kv_cache"].copy_(host["kv_cache"])
        for name, values in (("lens", computed + scheduled), ("table", table[:, 0]), ("seqs", [n]),
                             ("starts", np.cumsum([0, *scheduled]))):
            target = d[name][:, 0] if name == "table" else d[name]
            target[:len(values)] = torch.from_numpy(np.asarray(values, np.int32)).to(cuda)
        slots.copy_(torch.from_numpy(mapping))
        graph.replay()
        assert d["word"].item() == 0
        for slices, count in ((d["slices"], d["n"]), other):
            assert count.item() == plan.num_slices
            check_same(slices.cpu().numpy()[:, :plan.num_slices],
                       plan.slices[:, :plan.num_slices])
        if len(set(mapping[mapping >= 0])) == sum(mapping >= 0):
            host["slot_mapping"] = torch.from_numpy(plan.slices)
            host["num_kv_update_slices"][0] = plan.num_slices
            check_same(bits(d["kv_cache"].cpu()), expected(host))
    d["seqs"].fill_(requests + 1)
    before = bits(d["kv_cache"].cpu())
    graph.replay()
    assert (d["n"].item(), d["word"].item()) == (-1, pagedkv.torch.FAULT_COUNT)
    check_same(bits(d["kv_cache"].cpu()), before)


def test_refusals(cuda: Any) -> None:
    a = arguments()
    d = to(a, cuda)
    bad: dict[str, Callable[[Any], Any]] = {
        "num_kv_update_slices": lambda t: t.cpu(), "slot_mapping": lambda t: t.long(),
        "kv": lambda t: t.double()}
    for name, change in bad.items():
        with pytest.raises(pagedkv.InvalidError):
            call(d | {name: change(d[name])})
    with pytest.raises(pagedkv.InvalidError, match="int32"):
        call(d | {"num_kv_update_slices": d["num_kv_update_slices"].long()})
    check_same(bits(d["kv_cache"].cpu()), bits(a["kv_cache"]))


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compile(cuda: Any, mode: str) -> None:
    """In the graph, in place, for every count."""
    torch._dynamo.reset()

    @functools.partial(torch.compile, fullgraph=True, mode=mode)
    def layer(cache: Any, x: Any, slices: Any, n: Any) -> Any:
        ops.kv_cache_update_(cache, x * 2, slices, n, PAGE, 8)
        return x.sum()

    d = to(arguments(), cuda)
    torch._dynamo.mark_static_address(d["kv_cache"])
    address = d["kv_cache"].data_ptr()
    for n in (3, 0, 1, 2, 3, 1):
        host = arguments(n=n)
        x = torch.arange(host["kv"].numel(), dtype=torch.float32).reshape(host["kv"].shape)
        for name, tensor in host.items():
            d[name].copy_(tensor)
        with torch.no_grad():
            layer(d["kv_cache"], x.to(cuda), d["slot_mapping"], d["num_kv_update_slices"])
        check_same(bits(d["kv_cache"].cpu()), expected(host | {"kv": x * 2}), n=n)
    assert d["kv_cache"].data_ptr() == address


# ---- JAX -----------------------------------------------------------------------------------


@pytest.mark.parametrize("n_layers", [1, 12])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "int8", "float8_e4m3fn"])
def test_jax(dtype: str, n_layers: int) -> None:
    """Under jit with donation: in place, one program for every count; of 12, XLA makes a graph."""
    if not jax_has_gpu():
        pytest.skip("JAX has no GPU here")
    import jax
    import jax.numpy as jnp
    import pagedkv.jax

    @functools.partial(jax.jit, donate_argnums=0)
    def step(caches: Any, new_kv: Any, slices: Any, n: Any) -> Any:
        return [pagedkv.jax.kv_cache_update(new_kv + i if i else new_kv, slices, cache, n,
                                            page_size=16) for i, cache in enumerate(caches)]

    gpu = jax.devices("gpu")[0]
    rng = np.random.default_rng(3)
    host = [np.array(jnp.asarray(rng.integers(0, 4, (1024, 4, 32)), dtype))
            for _ in range(n_layers)]
    caches = [jnp.array(c, copy=True, device=gpu) for c in host]
    where = {c.unsafe_buffer_pointer() for c in caches}
    for computed in (0, 5, 30, 90, 91, 92, 500):
        new_kv = np.array(jnp.asarray(rng.integers(0, 4, (80, 4, 32)), dtype))
        plan = pagedkv.plan([computed, 3], [40, computed % 7 + 1],
                            [range(40), range(40, 63)], page_size=16, capacity=12)
        garbage = plan.slices.copy()
        garbage[:, plan.num_slices:] = -7
        count = np.array([plan.num_slices], np.int32)
        rows = [np.array(jnp.asarray(new_kv) + i if i else new_kv) for i in range(n_layers)]
        caches = step(caches, *(jax.device_put(t, gpu) for t in (new_kv, garbage, count)))
        for i, cache in enumerate(caches):
            raw = host[i].view(np.uint8)
            model.update(rows[i].view(np.uint8), model.columns(plan.slices, plan.num_slices), raw)
            check_same(np.asarray(cache).view(np.uint8), raw, computed=computed, layer=i)
    assert step._cache_size() == 1
    assert {c.unsafe_buffer_pointer() for c in caches} == where


# ---- transformers' continuous batching ------------------------------------------------------


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("name", ["llama", "llama-window", "qwen3", "qwen3-window"])
def test_transformers_same_tokens(cuda: Any, name: str, pool: bool, graphs: bool) -> None:
    """The engine alone and under the hook; a graph that it captures plans and writes by itself."""
    import test_transformers as engine
    from pagedkv.integrations.transformers import patched

    groups = engine.MODELS[name][1]
    if pool and groups > 1:
        return  # refused, as test_transformers.py shows
    made, requests = engine.model(name, device=str(cuda)), engine.prompts(1, *engine.LENGTHS)
    options = {"use_cuda_graph": graphs, "use_async_batching": graphs}
    want = engine.generate(made, requests, **options)
    with patched(pool=pool) as counts:
        got = engine.generate(made, requests, **options)
    assert want.errors == got.errors == [None] * len(requests)
    assert (got.tokens, got.logprobs) == (want.tokens, want.logprobs)
    assert counts.write_calls_of_engine == 2 * counts.writes > 0
    if not graphs:
        assert (counts.plans, counts.writes) == (groups * want.steps, engine.LAYERS * want.steps)
        assert pool or got.cache == want.cache
