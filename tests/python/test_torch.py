"""The PyTorch operators: in place, declared so, kept whole by torch.compile, upstream's call."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pagedkv
import pagedkv.torch
import pytest
import torch
from hypothesis import given, settings
from pagedkv import InvalidError, RangeError, UnsupportedError
from torch._inductor.utils import run_and_get_code
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import model
from model import check_same
from tensors import (
    DIM,
    DTYPES,
    HEADS,
    PAGE,
    SLOTS,
    TOKENS,
    arguments,
    bits,
    expected,
    randoms,
)

ops = torch.ops.pagedkv


def call(a: dict[str, torch.Tensor]) -> None:
    assert ops.kv_cache_update_(a["kv_cache"], a["kv"], a["slot_mapping"],
                                a["num_kv_update_slices"], PAGE, 8) is None


# ---- the operator --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_in_place(dtype: torch.dtype) -> None:
    for n in range(4):
        a = arguments(dtype, n)
        want, address = expected(a), a["kv_cache"].data_ptr()
        source = bits(a["kv"])
        call(a)
        check_same(bits(a["kv_cache"]), want, dtype=dtype, n=n)
        check_same(bits(a["kv"]), source, dtype=dtype, n=n)
        assert a["kv_cache"].data_ptr() == address


def test_python_functions() -> None:
    """The named forms of both operators."""
    a = arguments()
    want = expected(a)
    pagedkv.torch.kv_cache_update(a["kv_cache"], a["kv"], a["slot_mapping"],
                                  a["num_kv_update_slices"], page_size=PAGE)
    check_same(bits(a["kv_cache"]), want)
    b, c = arguments(), arguments(torch.float32, 2)
    caches = [b["kv_cache"], c["kv_cache"][..., :5].contiguous()]
    rows = [b["kv"], c["kv"][..., :5]]
    wants = [expected(b | {"num_kv_update_slices": c["num_kv_update_slices"]}),
             expected(c | {"kv": rows[1], "kv_cache": caches[1]})]
    pagedkv.torch.kv_cache_update_separate(*caches, *rows, b["slot_mapping"],
                                           c["num_kv_update_slices"], page_size=PAGE)
    for cache, want in zip(caches, wants, strict=True):
        check_same(bits(cache), want)


def test_schemas() -> None:
    """The mutation is declared, and the call form is upstream's."""
    assert str(ops.kv_cache_update_.default._schema) == (
        "pagedkv::kv_cache_update_(Tensor(a!) kv_cache, Tensor kv, Tensor slot_mapping, "
        "Tensor num_kv_update_slices, int page_size, int num_slices_per_block) -> ()")
    assert str(ops.kv_cache_update_op.default._schema) == (
        "pagedkv::kv_cache_update_op(Tensor kv, Tensor slot_mapping, Tensor kv_cache, "
        "Tensor num_kv_update_slices, int page_size, int num_slices_per_block) -> Tensor")
    separate = ops.kv_cache_update_separate_.default._schema
    assert [a.name for a in separate.arguments if a.is_write] == ["key_cache", "value_cache"]


def test_upstream_call() -> None:
    """As the TPU backend calls it: the result copied back, which must change nothing."""
    a = arguments(torch.bfloat16)
    want, cache = expected(a), a["kv_cache"]
    result = torch.ops.pagedkv.kv_cache_update_op(
        a["kv"], a["slot_mapping"], cache, a["num_kv_update_slices"], PAGE, 8)
    assert result.data_ptr() == cache.data_ptr() and result.shape == cache.shape
    cache.copy_(result)
    check_same(bits(cache), want)


CASES = st.fixed_dictionaries({
    "seed": st.integers(0, 2**32 - 1), "size": st.sampled_from([1, 8, 16, 33]),
    "requests": st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=4),
    "heads": st.integers(1, 3), "dims": st.tuples(st.integers(1, 9), st.integers(1, 9)),
    "longest": st.sampled_from([None, 0]), "layout": st.sampled_from(["nhd", "hnd", "kv first"]),
})


@settings(max_examples=80)
@given(case=CASES)
def test_random_batches(case: dict[str, Any]) -> None:
    """Both operators on views that are not contiguous, with a source cut from a QKV product."""
    seed, size, heads, (dk, dv) = (case[k] for k in ("seed", "size", "heads", "dims"))
    batch = model.make_batch(np.random.default_rng(seed), case["requests"], size)
    tokens, pages = batch.num_tokens, batch.num_pages
    step = pagedkv.plan(batch.computed, batch.scheduled, batch.pages, page_size=size,
                        max_slice_tokens=case["longest"])
    slices = model.columns(step.slices, step.num_slices)
    mapping = torch.from_numpy(step.slices)
    count = torch.tensor([step.num_slices], dtype=torch.int32)
    qkv = randoms(seed, tokens, heads * (dk + dk + dv))
    key = qkv[:, heads * dk:2 * heads * dk].unflatten(1, (heads, dk))
    value = qkv[:, 2 * heads * dk:].unflatten(1, (heads, dv))
    if case["layout"] == "kv first":
        dv, value = dk, key.clone()
        whole = randoms(seed + 1, 2, pages, size, heads, dk)
        caches = [whole[0], whole[1]]
    elif case["layout"] == "hnd":
        whole = randoms(seed + 1, pages, heads, size, dk + dv)
        caches = [whole[..., :dk].transpose(1, 2), whole[..., dk:].transpose(1, 2)]
    else:
        whole = randoms(seed + 1, pages, size, heads, dk + dv)
        caches = [whole[..., :dk], whole[..., dk:]]
    want, parts = whole.clone(), []
    views = [torch.as_strided(want, c.shape, c.stride(), c.storage_offset()) for c in caches]
    for view, rows in zip(views, (key, value), strict=True):
        raw = bits(view)
        model.update(bits(rows), slices, raw)
        view.view(torch.int32).copy_(torch.from_numpy(raw))
        parts.append(raw)
    ops.kv_cache_update_separate_(*caches, key, value, mapping, count, size)
    check_same(bits(whole), bits(want), **case)
    if case["layout"] != "kv first":
        again = whole.clone()
        again.view(torch.int32).fill_(7)
        first = torch.as_strided(again, caches[0].shape, caches[0].stride())
        ops.kv_cache_update_(first, key, mapping, count, size, 8)
        only = bits(torch.full(caches[0].shape, 7, dtype=torch.int32))
        model.update(bits(key), slices, only)
        check_same(bits(first), only, **case)


def test_no_gradient_modes() -> None:
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad):
        with mode():
            a = arguments()
            want = expected(a)
            call(a)
            check_same(bits(a["kv_cache"]), want, mode=mode)
    a = arguments()  # a source with a gradient is written like any other
    want = expected(a)
    a["kv"].requires_grad_()
    call(a)
    check_same(bits(a["kv_cache"]), want)
    assert not a["kv_cache"].requires_grad


def test_views_that_bits_do_not_show() -> None:
    """A lazy conjugate or negative is made real before its bits are copied."""
    a = arguments(torch.complex64)
    a["kv"] = torch.complex(torch.ones(TOKENS, HEADS, DIM), torch.ones(TOKENS, HEADS, DIM))
    for lazy in (a["kv"].conj(), torch._neg_view(a["kv"])):
        want = expected(a | {"kv": lazy.resolve_conj().resolve_neg().clone()})
        cache = a["kv_cache"].clone()
        call(a | {"kv": lazy, "kv_cache": cache})
        check_same(bits(cache), want)


def test_threads() -> None:
    pagedkv.set_num_threads(3)
    slots = 20_000
    rows, cache = randoms(3, slots, 2, 32), torch.zeros(slots, 2, 32)
    order = np.random.default_rng(4).permutation(slots).astype(np.int32)
    slices = torch.from_numpy(np.stack([order, np.arange(slots, dtype=np.int32),
                                        np.ones(slots, np.int32)]))
    ops.kv_cache_update_(cache, rows, slices, torch.tensor([slots], dtype=torch.int32), 16, 8)
    check_same(bits(cache)[order], bits(rows))


# ---- what torch checks ------------------------------------------------------------------


def separate(a: dict[str, torch.Tensor]) -> tuple[Any, ...]:
    return (a["kv_cache"].clone(), a["kv_cache"].clone(), a["kv"], a["kv"].clone(),
            a["slot_mapping"], a["num_kv_update_slices"], PAGE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    """Schema, fake kernel, autograd registration, and tracing by AOT dispatch."""
    for n in (0, 3):
        a = arguments(dtype, n)
        torch.library.opcheck(
            ops.kv_cache_update_.default,
            (a["kv_cache"], a["kv"], a["slot_mapping"], a["num_kv_update_slices"], PAGE, 8))
        torch.library.opcheck(ops.kv_cache_update_separate_.default, separate(a))


def test_fake_kernels() -> None:
    with FakeTensorMode():
        a = {name: torch.empty_like(t) for name, t in arguments().items()}
        call(a)
        assert ops.kv_cache_update_separate_(*separate(a)) is None
        result = ops.kv_cache_update_op(a["kv"], a["slot_mapping"], a["kv_cache"],
                                        a["num_kv_update_slices"], PAGE, 8)
        assert result.shape == (SLOTS, HEADS, DIM) and result.dtype == torch.float32


def compiled(function: Callable[..., Any], *inputs: Any) -> tuple[Any, str]:
    """Compiled with no break, and the code that Inductor made for it."""
    torch._dynamo.reset()
    with torch.no_grad():
        result, codes = run_and_get_code(torch.compile(function, fullgraph=True), *inputs)
    assert len(codes) == 1
    return result, codes[0]


def test_compile() -> None:
    """One graph, the operator called once on the input itself, and no copy of the cache."""
    def layer(cache: Any, x: Any, slices: Any, n: Any) -> Any:
        kv = (x * 2 + 1).unflatten(1, (HEADS, DIM))
        ops.kv_cache_update_(cache, kv, slices, n, PAGE, 8)
        return cache[:16].sum() + x.sum()

    a = arguments()
    x = torch.arange(TOKENS * HEADS * DIM, dtype=torch.float32).reshape(TOKENS, -1)
    a["kv_cache"].fill_(1)
    want = expected(a | {"kv": (x * 2 + 1).unflatten(1, (HEADS, DIM))})
    address = a["kv_cache"].data_ptr()
    result, code = compiled(layer, a["kv_cache"], x, a["slot_mapping"], a["num_kv_update_slices"])
    check_same(bits(a["kv_cache"]), want)
    assert a["kv_cache"].data_ptr() == address
    total = torch.from_numpy(want.reshape(-1).view(np.float32).copy()).view(SLOTS, HEADS, DIM)
    torch.testing.assert_close(result, total[:16].sum() + x.sum())
    assert code.count("torch.ops.pagedkv.kv_cache_update_.default(") == 1
    assert "auto_functionalized" not in code
    no_copy_of_the_cache(code, (SLOTS, HEADS, DIM))


def no_copy_of_the_cache(code: str, shape: tuple[int, ...]) -> None:
    """No buffer of its shape or size is made, nor is anything copied back into it."""
    text = re.escape(", ".join(map(str, shape)))
    assert not re.search(rf"empty_strided\w*\(\(({text}|{np.prod(shape)}),?\)", code), code
    assert "clone" not in code and "copy_" not in code, code


def test_the_copy_check_can_fail() -> None:
    def copies(cache: Any, kv: Any, slices: Any, n: Any) -> Any:
        other = cache + 1
        ops.kv_cache_update_(other, kv, slices, n, PAGE, 8)
        return other

    a = arguments()
    _, code = compiled(copies, a["kv_cache"], a["kv"], a["slot_mapping"],
                       a["num_kv_update_slices"])
    with pytest.raises(AssertionError):
        no_copy_of_the_cache(code, (SLOTS, HEADS, DIM))


def test_compile_upstream_call_and_layers() -> None:
    """Upstream's form, two layers, K and V apart, one of them not contiguous."""
    def step(first: Any, keys: Any, values: Any, kv: Any, slices: Any, n: Any) -> None:
        first.copy_(ops.kv_cache_update_op(kv, slices, first, n, PAGE, 8))
        ops.kv_cache_update_separate_(keys, values, kv[:, ::2], kv[:, 1::2], slices, n, PAGE)

    a = arguments()
    want = expected(a)
    pages = SLOTS // PAGE
    caches = [torch.zeros(pages, HEADS // 2, PAGE, DIM).transpose(1, 2) for _ in range(2)]
    addresses = [t.data_ptr() for t in (a["kv_cache"], *caches)]
    _, code = compiled(step, a["kv_cache"], *caches, a["kv"], a["slot_mapping"],
                       a["num_kv_update_slices"])
    check_same(bits(a["kv_cache"]), want)
    for i, cache in enumerate(caches):
        zeros = np.zeros((pages, PAGE, HEADS // 2, DIM), np.int32)
        model.update(bits(a["kv"][:, i::2]), model.columns(a["slot_mapping"].numpy(), 3), zeros)
        check_same(bits(cache), zeros, cache=i)
    assert [t.data_ptr() for t in (a["kv_cache"], *caches)] == addresses
    assert code.count("kv_cache_update_.default(") == 1
    assert code.count("kv_cache_update_separate_.default(") == 1
    no_copy_of_the_cache(code, (SLOTS, HEADS, DIM))
    no_copy_of_the_cache(code, (pages, PAGE, HEADS // 2, DIM))


def test_one_compilation_serves_every_count() -> None:
    """The count is read when the operator runs."""
    graphs = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    run = torch.compile(lambda *t: ops.kv_cache_update_(*t, PAGE, 8), backend=backend,
                        fullgraph=True)
    for n in (3, 0, 1, 2):
        a = arguments(n=n)
        want = expected(a)
        run(a["kv_cache"], a["kv"], a["slot_mapping"], a["num_kv_update_slices"])
        check_same(bits(a["kv_cache"]), want, n=n)
    assert len(graphs) == 1


@pytest.mark.parametrize("to", [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("source", [torch.float32, torch.float16])
def test_conversions(source: torch.dtype, to: torch.dtype) -> None:
    """Other dtypes on both sides are converted, without scales, in the graph too."""
    a = arguments()
    kv = (torch.arange(TOKENS * HEADS * DIM) / 7 - 9).reshape(TOKENS, HEADS, DIM).to(source)
    cache = torch.zeros(SLOTS, HEADS, DIM, dtype=to)
    want = bits(cache)
    model.update(bits(kv.to(to)), model.columns(a["slot_mapping"].numpy(), 3), want)
    rest = (kv, a["slot_mapping"], a["num_kv_update_slices"])
    ops.kv_cache_update_(cache, *rest, PAGE, 8)
    check_same(bits(cache), want)
    torch._dynamo.reset()
    run = torch.compile(lambda *t: ops.kv_cache_update_(*t, PAGE, 8), backend="aot_eager",
                        fullgraph=True)
    cache.zero_()
    run(cache, *rest)
    check_same(bits(cache), want)
    keys, values = (torch.zeros(SLOTS, HEADS, DIM, dtype=to) for _ in range(2))
    ops.kv_cache_update_separate_(keys, values, kv, kv, *rest[1:], PAGE)
    check_same(bits(keys), want)
    check_same(bits(values), want)


def test_errors_leave_compiled_code() -> None:
    torch._dynamo.reset()
    run = torch.compile(lambda *t: ops.kv_cache_update_(*t, PAGE, 8), backend="aot_eager",
                        fullgraph=True)
    a = arguments(n=5)
    before = bits(a["kv_cache"])
    with pytest.raises(RangeError, match="num_kv_update_slices=5"):
        run(a["kv_cache"], a["kv"], a["slot_mapping"], a["num_kv_update_slices"])
    check_same(bits(a["kv_cache"]), before)


# ---- bad input -----------------------------------------------------------------------------


BAD: dict[str, tuple[dict[str, Callable[[torch.Tensor], Any]], type[Exception], str, int]] = {
    "dtype": ({"kv": lambda t: t.double()}, InvalidError, "float64", -1),
    "slices dtype": ({"slot_mapping": lambda t: t.long()}, InvalidError, "slices", -1),
    "slices shape": ({"slot_mapping": lambda t: t.T.contiguous()}, InvalidError, "slices", -1),
    "slices strides": ({"slot_mapping": lambda t: t.T.contiguous().T}, InvalidError, "slices", -1),
    "count dtype": ({"num_kv_update_slices": lambda t: t.float()}, InvalidError,
                    "num_kv_update_slices", -1),
    "count shape": ({"num_kv_update_slices": lambda t: t.expand(2)}, InvalidError,
                    "num_kv_update_slices", -1),
    "count": ({"num_kv_update_slices": lambda t: t + 2}, RangeError, "num_kv_update_slices=5", -1),
    "count below 0": ({"num_kv_update_slices": lambda t: t - 4}, RangeError,
                      "num_kv_update_slices=-1", -1),
    "garbage is real": ({"num_kv_update_slices": lambda t: t + 1}, RangeError,
                        "kv_cache_start=-7", 3),
    "heads": ({"kv": lambda t: t[:, :3]}, InvalidError, "kv", -1),
    "axes": ({"kv_cache": lambda t: t[0]}, InvalidError, "kv_cache", -1),
    "strides": ({"kv_cache": lambda t: t.transpose(1, 2).contiguous().transpose(1, 2)},
                InvalidError, "kv_cache", -1),
    "expanded": ({"kv_cache": lambda t: t[:1].expand(SLOTS, HEADS, DIM)}, InvalidError,
                 "kv_cache", -1),
    "overlap": ({"kv": lambda t: OVERLAP[:TOKENS], "kv_cache": lambda t: OVERLAP}, InvalidError,
                "kv_cache", -1),
    "freed": ({"kv_cache": lambda t: freed(t)}, InvalidError, "kv_cache", -1),
    "freed count": ({"num_kv_update_slices": lambda t: freed(t)}, InvalidError,
                    "num_kv_update_slices", -1),
    "cache on meta": ({"kv_cache": lambda t: t.to("meta")}, InvalidError, "kv_cache", -1),
    "kv on meta": ({"kv": lambda t: t.to("meta")}, InvalidError, "kv", -1),
    "slices on meta": ({"slot_mapping": lambda t: t.to("meta")}, InvalidError, "slot_mapping", -1),
    "count on meta": ({"num_kv_update_slices": lambda t: t.to("meta")}, InvalidError,
                      "num_kv_update_slices", -1),
    "sparse": ({"kv_cache": lambda t: t.to_sparse()}, NotImplementedError, "Sparse", -1),
}
OVERLAP = torch.zeros(SLOTS, HEADS, DIM)


def freed(tensor: torch.Tensor) -> torch.Tensor:
    tensor.untyped_storage().resize_(0)
    return tensor


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input(case: str) -> None:
    """Both call forms refuse, and nothing was written."""
    change, kind, words, index = BAD[case]
    a = arguments()
    cache = a["kv_cache"]
    before = bits(cache)
    a |= {name: spoil(a[name].clone() if "freed" in case else a[name])
          for name, spoil in change.items()}
    for form in (ops.kv_cache_update_, ops.kv_cache_update_op):
        names = ("kv_cache", "kv", "slot_mapping") if form is ops.kv_cache_update_ else (
            "kv", "slot_mapping", "kv_cache")
        with pytest.raises(kind, match=re.escape(words)) as caught:
            form(*(a[name] for name in names), a["num_kv_update_slices"], PAGE, 8)
        if isinstance(caught.value, pagedkv.Error):
            assert caught.value.index == index
        check_same(bits(cache), before, case=case)
        assert not bits(OVERLAP).any()


def test_page_sizes_that_are_none() -> None:
    a = arguments()
    for size in (0, -1, 7):
        before = bits(a["kv_cache"])
        with pytest.raises(InvalidError, match="page"):
            ops.kv_cache_update_(a["kv_cache"], a["kv"], a["slot_mapping"],
                                 a["num_kv_update_slices"], size, 8)
        check_same(bits(a["kv_cache"]), before, page_size=size)


def test_other_devices_of_the_python_function() -> None:
    a = arguments()
    for name in ("kv", "slot_mapping", "kv_cache", "num_kv_update_slices"):
        b = a | {name: a[name].to("meta")}
        with pytest.raises(UnsupportedError, match="is not in host memory"):
            pagedkv.kv_cache_update(b["kv"], b["slot_mapping"], b["kv_cache"],
                                    b["num_kv_update_slices"], page_size=PAGE)


def test_status_word_on_cpus() -> None:
    """Nothing is written to it: faults are raised."""
    a = arguments()
    want, word = expected(a), torch.zeros(1, dtype=torch.int32)
    rest = (a["slot_mapping"], a["num_kv_update_slices"])
    for apart in (False, True):
        caches = [a["kv_cache"].clone(), a["kv_cache"].clone()]
        if apart:
            pagedkv.torch.kv_cache_update_separate(*caches, a["kv"], a["kv"].clone(), *rest,
                                                   page_size=PAGE, status_word=word)
            check_same(bits(caches[1]), want)
        else:
            pagedkv.torch.kv_cache_update(caches[0], a["kv"], *rest, page_size=PAGE,
                                          status_word=word)
        check_same(bits(caches[0]), want)
        assert word.item() == 0
        torch.library.opcheck(
            torch.ops.pagedkv.kv_cache_update_status_.default,
            (a["kv_cache"].clone(), a["kv_cache"].clone() if apart else None, a["kv"],
             a["kv"].clone() if apart else None, *rest, PAGE, word))
    with pytest.raises(InvalidError, match="value"):
        torch.ops.pagedkv.kv_cache_update_status_(a["kv_cache"], None, a["kv"], a["kv"], *rest,
                                                  PAGE, word)


def test_dispatch() -> None:
    """CUDA tensors reach these functions; there is no such tensor here, but the key is."""
    a = arguments()
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    rest = (a["slot_mapping"], a["num_kv_update_slices"])
    for name, values in (
            ("kv_cache_update_", (a["kv_cache"], a["kv"], *rest, PAGE, 8)),
            ("kv_cache_update_separate_", (*2 * [a["kv_cache"]], *2 * [a["kv"]], *rest, PAGE)),
            ("kv_cache_update_status_", (a["kv_cache"], None, a["kv"], None, *rest, PAGE,
                                         rest[1]))):
        with pytest.raises(InvalidError, match="the cache: is on cpu"):
            getattr(torch.ops.pagedkv, name).default.redispatch(keys, *values)


def test_fake_cuda_tensors() -> None:
    metas = {name: t.to("meta") for name, t in arguments().items()}
    with FakeTensorMode() as mode:
        a = {name: FakeTensor(mode, t, torch.device("cuda:0")) for name, t in metas.items()}
        call(a)
        with pytest.raises(InvalidError, match="different devices"):
            call(a | {"num_kv_update_slices": torch.zeros(1, dtype=torch.int32)})


def test_without_device_code() -> None:
    """What is installed here says what is missing, if it is missing."""
    if pagedkv.cuda_device_count() == 0:
        with pytest.raises(UnsupportedError, match="cuda:0: "):
            pagedkv.torch.open_cuda(0)


def test_import_is_needed_and_enough() -> None:
    """`import pagedkv` brings no PyTorch; `import pagedkv.torch` the operators; twice is once."""
    code = ("import sys, pagedkv; assert 'torch' not in sys.modules; import pagedkv.torch, torch; "
            "import importlib; torch.ops.pagedkv.kv_cache_update_.default; print('yes')")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout == "yes\n", run.stderr
