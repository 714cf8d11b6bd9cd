"""The bindings of CUDA on the fake driver: what they hand over, refuse, and never look at.

test_fake_gpu.py runs this file in a process of its own. Kernels by themselves are tested in
tests/cuda/, and everything on a real GPU in test_gpu.py.
"""

from __future__ import annotations

import ctypes
import os
import re
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pagedkv
import pagedkv.torch
import pytest
import torch
from pagedkv import DeviceError, InvalidError, UnsupportedError

import fake_gpu
import model
from fake_gpu import DeviceTensor, FakeGpu
from model import check_same
from tensors import DTYPES, HEADS, PAGE, SLOTS, TOKENS, arguments, bits, expected, randoms
from test_xla_abi import EXECUTE, INTERNAL, INVALID_ARGUMENT, UNIMPLEMENTED, Call
from test_xla_abi import driver as driver

INITIALIZE = 2


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> FakeGpu:
    return fake_gpu.build(tmp_path_factory.mktemp("fake_gpu"))


@pytest.fixture
def cuda(built: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGpu]:
    """The module's C part on the fake driver, and each device's stream as the current one."""
    monkeypatch.setattr(pagedkv.torch, "_core", built.core)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: types.SimpleNamespace(
        cuda_stream=built.streams[device]))
    yield built
    for device in range(2):
        built.synchronize(device)


@pytest.fixture
def fault() -> Iterator[Callable[[str, int], None]]:
    """Makes the driver fail, as tests/cuda/fake.h says."""
    names: list[str] = []

    def make(name: str, code: int) -> None:
        names.append(f"PAGEDKV_FAKE_CUDA_{name}")
        os.environ[names[-1]] = str(code)

    yield make
    for name in names:
        os.environ.pop(name, None)


def to_device(cuda: FakeGpu, a: dict[str, Any], device: int = 0) -> dict[str, Any]:
    return {name: cuda.to_device(tensor, device) for name, tensor in a.items()}


def call(a: dict[str, Any], page_size: int = PAGE) -> None:
    pagedkv.torch._update_cuda(a["kv_cache"], a["kv"], a["slot_mapping"],
                               a["num_kv_update_slices"], page_size, 8)


# ---- PyTorch --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_update(cuda: FakeGpu, dtype: torch.dtype) -> None:
    for n in range(4):
        a = arguments(dtype, n)
        d = to_device(cuda, a, device=1)
        call(d)
        # On the current stream, and later: nothing has waited for it.
        check_same(bits(d["kv_cache"].cpu()), bits(a["kv_cache"]), dtype=dtype, n=n)
        cuda.synchronize(1)
        check_same(bits(d["kv_cache"].cpu()), expected(a), dtype=dtype, n=n)
        for name in ("kv", "slot_mapping", "num_kv_update_slices"):
            check_same(bits(d[name].cpu()), bits(a[name]), name=name)


def test_open(cuda: FakeGpu) -> None:
    assert cuda.core.cuda_device_count() == 2
    pagedkv.torch.open_cuda(0)
    pagedkv.torch.open_cuda("cuda:0")
    for name in (2, -1, 64, "cuda:2"):
        with pytest.raises(InvalidError, match="no such"):
            pagedkv.torch.open_cuda(name)
    with pytest.raises(InvalidError, match="cpu"):
        pagedkv.torch.open_cuda("cpu")


def test_layouts(cuda: FakeGpu) -> None:
    """K and V apart, of other sizes, in pages with heads first, out of a fused output."""
    a = arguments()
    fused = randoms(5, TOKENS, 3 * HEADS, 12)
    key, value = fused[:, HEADS:2 * HEADS, :8], fused[:, 2 * HEADS:]
    caches = [randoms(6, SLOTS // PAGE, HEADS, PAGE, dim).transpose(1, 2) for dim in (8, 12)]
    wants = []
    for cache, rows in zip(caches, (key, value), strict=True):
        want = bits(cache)
        model.update(bits(rows), model.columns(a["slot_mapping"].numpy(), 3), want)
        wants.append(want)
    d = [cuda.to_device(t) for t in
         (*caches, key, value, a["slot_mapping"], a["num_kv_update_slices"])]
    pagedkv.torch._update_separate_cuda(*d, PAGE)
    cuda.synchronize()
    for i in range(2):
        check_same(bits(d[i].cpu()), wants[i], plane=i)


def test_conversion(cuda: FakeGpu) -> None:
    a = arguments()
    a["kv_cache"] = torch.zeros(a["kv_cache"].shape, dtype=torch.float8_e4m3fn)
    a["kv"] = (torch.arange(a["kv"].numel()) / 7 - 9).reshape(a["kv"].shape).bfloat16()
    d = to_device(cuda, a)
    call(d)
    cuda.synchronize()
    want = bits(a["kv_cache"])
    model.update(bits(a["kv"].to(torch.float8_e4m3fn)),
                 model.columns(a["slot_mapping"].numpy(), 3), want)
    check_same(bits(d["kv_cache"].cpu()), want)


def test_capture(cuda: FakeGpu) -> None:
    """A replay reads what stands in the tensors then: no pointer's number was looked up."""
    a = arguments()
    d = to_device(cuda, a)
    pagedkv.torch.open_cuda(0)
    with cuda.capture() as graph:
        call(d)
    cuda.synchronize()
    check_same(bits(d["kv_cache"].cpu()), bits(a["kv_cache"]))
    for n in (0, 1, 3, 2):
        b = arguments(n=n)
        b["slot_mapping"] = b["slot_mapping"][:, torch.tensor([2, 0, 1, 3])].contiguous()
        for name, tensor in b.items():
            d[name].write(tensor)
        cuda.replay(graph)
        check_same(bits(d["kv_cache"].cpu()), expected(b), n=n)


@pytest.mark.parametrize("apart", [False, True])
def test_status_word(cuda: FakeGpu, apart: bool) -> None:
    for n, want in ((3, 0), (4, 1), (5, pagedkv.torch.FAULT_COUNT), (-1, 1 << 30)):
        a = arguments(n=n)
        word = cuda.to_device(torch.zeros(1, dtype=torch.int32))
        d = to_device(cuda, a)
        other = cuda.to_device(a["kv_cache"])
        pagedkv.torch._update_status_cuda(
            d["kv_cache"], other if apart else None, d["kv"], d["kv"] if apart else None,
            d["slot_mapping"], d["num_kv_update_slices"], PAGE, word)
        cuda.synchronize()
        assert word.cpu().item() == want
        good = expected(a | {"num_kv_update_slices": torch.tensor([3 if n in (3, 4) else 0])})
        check_same(bits(d["kv_cache"].cpu()), good, n=n)
        check_same(bits(other.cpu()), good if apart else bits(a["kv_cache"]), n=n)


def int32(*values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize("merge", [False, True])
def test_plan(cuda: FakeGpu, merge: bool) -> None:
    """The vectors of the design, then a batch that is wrong, with an update behind it."""
    wide = torch.full((4, 7), 1 << 30, dtype=torch.int32)
    wide[:2, :3] = int32([100, -1, -1], [200, 201, 202])
    outputs = [cuda.to_device(t) for t in (torch.full((3, 8), -5, dtype=torch.int32), int32(9))]
    word = cuda.to_device(int32(0))
    for lens, seqs, n in ((int32(10, 40, 0, 0), 2, 2 if merge else 4), (int32(10, 9, 0, 0), 2, -1),
                          (int32(10, 40, 0, 0), 0, 0), (int32(10, 40, 0, 0), 5, -1)):
        d = [cuda.to_device(t) for t in (lens, int32(0, 10, 40, 40, 40), wide[:, :3],
                                         int32(seqs))]
        pagedkv.torch._plan_cuda(*d, *outputs, word, 16, 0, 0 if merge else 16)
        cuda.synchronize()
        assert outputs[1].cpu().item() == n
        if n > 0:
            want = [[1600, 0, 10], [3210, 10, 30]] if merge else [
                [1600, 0, 10], [3210, 10, 6], [3216, 16, 16], [3232, 32, 8]]
            assert outputs[0].cpu()[:, :n].T.tolist() == want
        assert word.cpu().item() == (pagedkv.torch.FAULT_COUNT if n < 0 else 0)
        word.write(int32(0))


@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
def test_plan_slot_mapping(cuda: FakeGpu, kind: torch.dtype) -> None:
    slots = torch.tensor([14, 15, 16, 17, -1, 18, 99, -7], dtype=kind)
    outputs = [cuda.to_device(t) for t in (torch.zeros(3, 8, dtype=torch.int32), int32(9))]
    slots, tokens = cuda.to_device(slots), cuda.to_device(int32(6))
    starts, seqs = cuda.to_device(int32(0, 1, 6, 0)), cuda.to_device(int32(2))
    for merge, requests, want in (
            (False, (None, None), [[14, 0, 2], [16, 2, 2], [18, 5, 1]]),
            (True, (None, None), [[14, 0, 4], [18, 5, 1]]),
            (True, (starts, seqs), [[14, 0, 1], [15, 1, 3], [18, 5, 1]])):
        pagedkv.torch._plan_slots_cuda(slots, tokens, *requests, *outputs, None, 16, 99,
                                       0 if merge else 16)
        cuda.synchronize()
        n = outputs[1].cpu().item()
        assert outputs[0].cpu()[:, :n].T.tolist() == want
    word = cuda.to_device(int32(0))
    pagedkv.torch._plan_slots_cuda(slots, None, None, None, *outputs, word, 16, 99, 16)
    cuda.synchronize()
    assert (outputs[1].cpu().item(), word.cpu().item()) == (-1, pagedkv.torch.FAULT_COUNT)


def test_plan_refusals(cuda: FakeGpu) -> None:
    good = {"context_lens": int32(10, 40), "query_start_loc": int32(0, 10, 40),
            "block_table": int32([100, 0, 0], [200, 201, 202]), "num_seqs": int32(2),
            "slices": torch.zeros(3, 8, dtype=torch.int32), "num_slices": int32(9)}
    for name, value in (
            ("context_lens", int32(10, 40, 3)), ("context_lens", good["context_lens"].long()),
            ("query_start_loc", int32(0, 10)), ("query_start_loc", int32()),
            ("block_table", good["block_table"].T.contiguous().T), ("block_table", int32(1, 2)),
            ("num_seqs", int32(2, 2)), ("slices", torch.zeros(2, 8, dtype=torch.int32)),
            ("num_slices", good["num_slices"].long())):
        d = to_device(cuda, good | {name: value})
        with pytest.raises(InvalidError, match="query_start|block_table|num_s|slices|context_"):
            pagedkv.torch._plan_cuda(*d.values(), None, 16, 0, 16)
        d[name] = value
        with pytest.raises(InvalidError, match=f"{name}: is on cpu"):
            pagedkv.torch._plan_cuda(*d.values(), None, 16, 0, 16)
    d = to_device(cuda, good)
    with pytest.raises(InvalidError, match="page_size"):
        pagedkv.torch._plan_cuda(*d.values(), None, 0, 0, 0)
    slots = cuda.to_device(int32(1, 2))
    for tensors, words in (((slots, None, d["query_start_loc"], None), "num_seqs"),
                           ((cuda.to_device(torch.zeros(2)), None, None, None), "float32"),
                           ((slots, good["num_seqs"], None, None), "num_tokens: is on cpu")):
        with pytest.raises(InvalidError, match=words):
            pagedkv.torch._plan_slots_cuda(*tensors, d["slices"], d["num_slices"], None, 16, 0,
                                           16)
    cuda.synchronize()
    check_same(bits(d["slices"].cpu()), bits(good["slices"]))
    check_same(bits(d["num_slices"].cpu()), bits(good["num_slices"]))


# What changes in the host's tensors before they are on the device; and the words.
BAD: dict[str, tuple[Callable[[torch.Tensor], Any] | None, str, str]] = {
    "kv_cache": (lambda t: t.transpose(0, 1).contiguous(), "kv_cache", "kv_cache"),
    "dtype": (lambda t: t.double(), "kv", "no conversion"),
    "heads": (lambda t: t[:, :3], "kv", "new_kv: has heads"),
    "gaps": (lambda t: t.transpose(1, 2).contiguous().transpose(1, 2), "kv", "not contiguous"),
    "slices of int64": (lambda t: t.long(), "slot_mapping", "slices: holds int64"),
    "slices turned": (lambda t: t.T.contiguous(), "slot_mapping", "slices: is not of shape"),
    "count of int64": (lambda t: t.long(), "num_kv_update_slices", "is not one int32"),
    "two counts": (lambda t: t.repeat(2), "num_kv_update_slices", "is not one int32"),
    "kv on the CPU": (None, "kv", "new_kv: is on cpu, not on cuda:0"),
    "slices on the CPU": (None, "slot_mapping", "slices: is on cpu, not on cuda:0"),
    "count on the CPU": (None, "num_kv_update_slices",
                         "num_kv_update_slices: is on cpu, not on cuda:0"),
    "cache on the CPU": (None, "kv_cache", "the cache: is on cpu, but another"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_refusals(cuda: FakeGpu, case: str) -> None:
    change, name, words = BAD[case]
    a = arguments()
    d = to_device(cuda, a)
    d[name] = a[name] if change is None else cuda.to_device(change(a[name]))
    with pytest.raises(InvalidError, match=re.escape(words)):
        call(d)
    cuda.synchronize()
    if isinstance(d["kv_cache"], DeviceTensor) and name != "kv_cache":
        check_same(bits(d["kv_cache"].cpu()), bits(a["kv_cache"]))


def test_other_refusals(cuda: FakeGpu) -> None:
    d = to_device(cuda, arguments())
    other = cuda.to_device(arguments()["kv"], device=1)
    with pytest.raises(InvalidError, match="new_kv: is on cuda:1, not on cuda:0"):
        call(d | {"kv": other})
    for size in (0, -1, 7):
        with pytest.raises(InvalidError, match="page"):
            call(d, size)
    with pytest.raises(UnsupportedError, match="kv_cache: is not in host memory"):
        pagedkv.kv_cache_update(arguments()["kv"], arguments()["slot_mapping"], d["kv_cache"], 1,
                                page_size=PAGE)
    with pytest.raises(InvalidError, match="value"):
        pagedkv.torch._update_status_cuda(d["kv_cache"], None, d["kv"], d["kv"],
                                          d["slot_mapping"], d["num_kv_update_slices"], PAGE, d)
    word = arguments()["num_kv_update_slices"]
    with pytest.raises(InvalidError, match="status_word: is on cpu"):
        pagedkv.torch._update_status_cuda(d["kv_cache"], None, d["kv"], None, d["slot_mapping"],
                                          d["num_kv_update_slices"], PAGE, word)
    cuda.synchronize()
    check_same(bits(d["kv_cache"].cpu()), bits(arguments()["kv_cache"]))


def test_faults_of_the_driver(cuda: FakeGpu, fault: Any, tmp_path: Path) -> None:
    a = arguments()
    d = to_device(cuda, a)
    pagedkv.torch.open_cuda(0)
    fault("LAUNCH", 701)
    with pytest.raises(DeviceError, match=r"\(code 701\)"):
        call(d)
    check_same(bits(d["kv_cache"].cpu()), bits(a["kv_cache"]))
    call(d)  # the next call starts afresh
    cuda.synchronize()
    check_same(bits(d["kv_cache"].cpu()), expected(a))
    fresh = cuda.fresh_core(tmp_path)
    fault("LOAD", 209)  # no code for the device
    with pytest.raises(UnsupportedError, match="cuda:0: "):
        fresh.cuda_open(0)
    fault("LOAD", 2)
    with pytest.raises((DeviceError, pagedkv.NoMemoryError), match="cuda:0: "):
        fresh.cuda_open(0)


def test_open_under_capture(cuda: FakeGpu, tmp_path: Path, monkeypatch: Any) -> None:
    """It is refused, with a word about the driver's code; opened before, all is well."""
    fresh = cuda.fresh_core(tmp_path)
    monkeypatch.setattr(pagedkv.torch, "_core", fresh)
    d = to_device(cuda, arguments())
    with pytest.raises(AssertionError, match="cuStreamEndCapture: 901"), cuda.capture():
        with pytest.raises(DeviceError, match=r"cuda:0: .*\(code 90\d\)"):
            call(d)
    pagedkv.torch.open_cuda(0)
    with cuda.capture() as graph:
        call(d)
    cuda.replay(graph)
    check_same(bits(d["kv_cache"].cpu()), expected(arguments()))


# ---- JAX ----------------------------------------------------------------------------------


class CudaCall(Call):
    """A call whose buffers lie on a device."""

    def __init__(self, cuda: FakeGpu, core: Any, device: int = 0, n: int = 2) -> None:
        super().__init__()
        self.gpu, self.device, self.capsule = cuda, device, core.xla_handler_cuda()
        self.count[0] = n
        self.on_device = [cuda.to_device(torch.from_numpy(t), device) for t in
                          (self.new_kv, self.slices, self.cache, self.count)]
        for buffer, tensor in zip(self.args, self.on_device, strict=True):
            buffer.data = tensor.data_ptr()
        self.rets[0].data = self.args[2].data

    def drive(self, driver: Any) -> tuple[int, str]:
        ctypes.c_int.in_dll(driver, "drive_device").value = self.device
        ctypes.c_void_p.in_dll(driver, "drive_stream").value = self.gpu.streams[self.device]
        return self.run(driver, self.capsule)

    def result(self) -> Any:
        return self.on_device[2].cpu().numpy()


def test_xla_update(cuda: FakeGpu, driver: Any) -> None:
    for n, device in ((0, 0), (1, 1), (2, 0), (4, 0), (-1, 1)):
        a = CudaCall(cuda, cuda.core, device, n)
        want = a.cache.copy()
        model.update(a.new_kv, model.columns(a.slices, n if 0 <= n <= 3 else 0), want)
        assert a.drive(driver) == (0, "")
        check_same(a.result(), a.cache, n=n)  # nothing has waited for the stream
        cuda.synchronize(device)
        check_same(a.result(), want, n=n)


def test_xla_stages(cuda: FakeGpu, driver: Any, fault: Any, tmp_path: Path) -> None:
    """Opened at the initialize stage, launched at the execute stage, which may be captured."""
    fresh = cuda.fresh_core(tmp_path)
    a = CudaCall(cuda, fresh)
    a.stage = EXECUTE
    with pytest.raises(AssertionError, match="cuStreamEndCapture: 901"), cuda.capture():
        assert a.drive(driver)[0] == INTERNAL
    a.stage = INITIALIZE
    fault("LOAD", 209)
    code, message = a.drive(driver)
    assert code == UNIMPLEMENTED and "PKV_E_UNSUPPORTED" in message
    fault("LOAD", 0)
    assert a.drive(driver) == (0, "")
    cuda.synchronize()
    check_same(a.result(), a.cache)
    a.stage = EXECUTE
    with cuda.capture() as graph:
        assert a.drive(driver) == (0, "")
    for n in (0, 1, 2):
        a.on_device[2].write(torch.from_numpy(a.cache))
        a.on_device[3].write(torch.tensor([n], dtype=torch.int32))
        want = a.cache.copy()
        model.update(a.new_kv, model.columns(a.slices, n), want)
        cuda.replay(graph)
        check_same(a.result(), want, n=n)


def test_xla_refusals(cuda: FakeGpu, driver: Any, fault: Any) -> None:
    a = CudaCall(cuda, cuda.core)
    a.stage = INITIALIZE
    assert a.drive(driver) == (0, "")
    a.stage = EXECUTE
    fault("LAUNCH", 701)
    code, message = a.drive(driver)
    assert code == INTERNAL and "code 701" in message
    a.stage = 1
    assert a.drive(driver)[0] == INTERNAL
    a.stage = EXECUTE
    a.rets[0].data = a.args[0].data
    assert a.drive(driver)[0] == INVALID_ARGUMENT
    a.rets[0].data = a.args[2].data
    size = ctypes.c_size_t.in_dll(driver, "drive_api_bytes")
    whole = size.value
    try:
        size.value = whole - 8
        code, message = a.drive(driver)
    finally:
        size.value = whole
    assert code == UNIMPLEMENTED and "which device" in message
    cuda.synchronize()
    check_same(a.result(), a.cache)
