"""PyTorch's tensors, by DLPack's table of C functions and by methods: the same in every way.

A subclass is read by methods, so it stands for a PyTorch that has no table.
"""

from __future__ import annotations

import ctypes
import itertools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pagedkv
import pytest
import torch

from model import RawDLPack, _Tensor, check_same
from tensors import DIM, HEADS, PAGE, SLOTS, TOKENS, bits, randoms

# PyTorch's own, of dtypes that are experimental.
pytestmark = pytest.mark.filterwarnings("ignore:.*(ComplexHalf|quantize)")

SLICES = torch.tensor([[5, 0, 3], [16, 3, 8]], dtype=torch.int32).T.contiguous()


class ByMethods(torch.Tensor):
    __torch_function__ = torch._C._disabled_torch_function_impl


def by_methods(tensor: Any) -> Any:
    return tensor.as_subclass(ByMethods)


def as_it_is(tensor: Any) -> Any:
    return tensor


def outcome(new_kv: Any, cache: Any, slices: Any = SLICES, n: Any = 2) -> Any:
    """None, or what was raised."""
    try:
        pagedkv.kv_cache_update(new_kv, slices, cache, n, page_size=PAGE)
    except pagedkv.Error as error:
        return type(error), str(error)
    return None


def raw(tensor: torch.Tensor) -> Any:
    """The storage's own bytes, whatever the view of them says."""
    storage = tensor.untyped_storage()
    return torch.empty(0, dtype=torch.uint8).set_(storage).clone().numpy()


def dtypes() -> list[torch.dtype]:
    """All that tensors can be made of here."""
    found = []
    for dtype in sorted({v for v in vars(torch).values() if isinstance(v, torch.dtype)}, key=str):
        try:
            torch.zeros(16, dtype=torch.uint8).view(dtype)
        except (RuntimeError, TypeError):
            continue
        found.append(dtype)
    return found


DTYPES = dtypes()


def of_dtype(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    size = int(np.prod(shape)) * torch.empty(0, dtype=dtype).element_size()
    return torch.from_numpy(np.resize(np.arange(251, dtype=np.uint8), size)).view(dtype).reshape(
        shape)


def test_enough_dtypes() -> None:
    assert {torch.float32, torch.bfloat16, torch.float8_e5m2, torch.int4, torch.uint7,
            torch.complex32, torch.float4_e2m1fn_x2, torch.bool} <= set(DTYPES)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    """Into itself, and refused or converted into each other: int4 is not int8 either way."""
    for other in (dtype, *(d for d in DTYPES if d is not dtype)):
        want = None
        for left, right in itertools.product((by_methods, as_it_is), repeat=2):
            cache = of_dtype(other, SLOTS, HEADS, DIM)
            got = outcome(left(of_dtype(dtype, TOKENS, HEADS, DIM)), right(cache)), raw(cache)
            want = want or got
            assert got[0] == want[0], (other, left, right)
            check_same(got[1], want[1], other=other)
        if other is dtype:
            assert want is not None and want[0] is None


def freed(tensor: torch.Tensor) -> torch.Tensor:
    tensor.untyped_storage().resize_(0)
    return tensor


# What a tensor may be beside its dtype; of complex64 [n, HEADS, DIM].
VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "plain": lambda t: t,
    "offset": lambda t: torch.cat([t[:2], t])[2:],
    "strided": lambda t: torch.cat([t, t], 2)[..., :DIM],
    "transposed": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "last axis apart": lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
    "expanded": lambda t: t[:1].expand(t.shape),
    "conjugate": lambda t: t.conj(),
    "negative": torch._neg_view,
    "with a gradient": lambda t: t.requires_grad_(),
    "copied when written": torch._lazy_clone,
    "of inference": lambda t: t,
    "empty": lambda t: t[:0],
    "two axes": lambda t: t[0],
    "four axes": lambda t: t[:TOKENS].unflatten(0, (1, TOKENS)),
    "six axes": lambda t: t[None, None, None],
    "meta": lambda t: t.to("meta"),
    "freed": freed,
}


@pytest.mark.parametrize("name", VIEWS)
def test_views(name: str) -> None:
    """As new rows and as a cache; what shares its memory by copy-on-write keeps its own."""
    for side, length in ((0, TOKENS), (1, SLOTS)):
        results = []
        for way in (by_methods, as_it_is):
            tensors = [of_dtype(torch.complex64, n, HEADS, DIM).clone() for n in (TOKENS, SLOTS)]
            source = tensors[side]
            before = raw(source)
            with torch.inference_mode(name == "of inference"):
                tensors[side] = view = VIEWS[name](source)
                tensors[side] = way(view)
                got = outcome(*tensors, SLICES if name != "empty" else SLICES[:, :0],
                              2 if name != "empty" else 0)
            if name == "copied when written":
                check_same(raw(source), before)
            memory = [] if name == "meta" else raw(view)
            results.append((got, memory, raw(tensors[1]) if side == 0 else None))
        assert results[0][0] == results[1][0], (side, length)
        for first, second in zip(*(r[1:] for r in results), strict=True):
            assert first is second or np.array_equal(first, second), (side, length)


def test_parameters() -> None:
    cache = torch.nn.Parameter(torch.zeros(SLOTS, HEADS, DIM))
    assert outcome(torch.nn.Parameter(torch.ones(TOKENS, HEADS, DIM)), cache) is None
    assert int((cache != 0).sum()) == 11 * HEADS * DIM
    assert outcome(torch.ones(TOKENS, HEADS, DIM), torch.nn.UninitializedParameter()) is not None


def test_fake_tensors_are_refused_in_silence() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        fake = torch.zeros(SLOTS, HEADS, DIM)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refusal = outcome(torch.ones(TOKENS, HEADS, DIM), fake)
    assert refusal is not None and "kv_cache" in refusal[1]


def test_subclasses_say_what_they_are() -> None:
    """A method of theirs counts, though the table is inherited."""
    class Shifted(ByMethods):
        def data_ptr(self) -> int:
            return torch.Tensor.data_ptr(self) + 4 * HEADS * DIM

    memory = randoms(1, TOKENS + 1, HEADS, DIM)
    caches = [torch.zeros(SLOTS, HEADS, DIM) for _ in range(2)]
    assert outcome(memory[:TOKENS].as_subclass(Shifted), caches[0]) is None
    assert outcome(memory[1:], caches[1]) is None
    check_same(*map(bits, caches))


# ---- tables made by hand -------------------------------------------------------------------

READ = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.POINTER(_Tensor))


class Table(ctypes.Structure):
    """DLPack's table, of which `read` alone is used."""


Table._fields_ = [("major", ctypes.c_uint32), ("minor", ctypes.c_uint32),
                  ("older", ctypes.POINTER(Table)), ("not_used", ctypes.c_void_p * 3),
                  ("read", ctypes.c_void_p), ("stream", ctypes.c_void_p)]


def capsule(table: Table, name: bytes) -> Any:
    new = ctypes.pythonapi.PyCapsule_New
    new.restype = ctypes.py_object
    new.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return new(ctypes.addressof(table), name, None)


class Carrier:
    """Methods as a tensor has them, each counted, and room for a table."""

    table: Table

    def __init__(self, array: Any, **fields: Any) -> None:
        self.export = RawDLPack(array, **fields)
        self.tensor = torch.from_numpy(array)
        self.asked = self.read = 0

    def __getattr__(self, name: str) -> Any:
        if name in ("is_cpu", "shape", "stride", "dtype", "element_size"):
            self.asked += 1
            return getattr(self.tensor, name)
        raise AttributeError(name)

    def data_ptr(self) -> int:
        return self.tensor.data_ptr()


KEPT: list[Any] = []  # tables are for ever: the extension remembers types


def carrier(result: int = 0, name: bytes = b"dlpack_exchange_api", older: Table | None = None,
            major: int = 1, null: bool = False, inherited: bool = False) -> type[Carrier]:
    def read(obj: Any, out: Any) -> int:
        obj.read += 1
        ctypes.memmove(out, ctypes.addressof(obj.export._managed.tensor), ctypes.sizeof(_Tensor))
        return result

    callback = ctypes.PYFUNCTYPE(*(READ._restype_, *READ._argtypes_))(read)
    table = Table(major, 3, ctypes.pointer(older) if older is not None else None)
    table.read = None if null else ctypes.cast(callback, ctypes.c_void_p).value
    made = type("Made", (Carrier,), {"__dlpack_c_exchange_api__": capsule(table, name),
                                     "table": table})
    KEPT.append((callback, table, made))
    return type("Derived", (made,), {}) if inherited else made


def write(kind: type[Carrier], **fields: Any) -> tuple[Any, Carrier, Any]:
    rows = np.arange(TOKENS * HEADS * DIM, dtype=np.float32).reshape(TOKENS, HEADS, DIM)
    cache = np.zeros((SLOTS, HEADS, DIM), np.float32)
    new_kv = kind(rows, **fields)
    result = outcome(new_kv, cache)
    want = np.zeros_like(cache)
    want[5:8], want[16:24] = rows[:3], rows[3:11]
    if result is None:
        check_same(cache, want)
    else:
        assert not cache.any()
    return result, new_kv, cache


@pytest.mark.parametrize("case, reads", [
    ("plain", True), ("strides", True), ("other name", False), ("no function", False),
    ("newer", False), ("newer, and an older one", True), ("inherited", False),
    ("no capsule", False)])
def test_which_table_is_used(case: str, reads: bool) -> None:
    """By the table no method is called; without one that fits, methods do as well."""
    older = carrier()
    kind = {
        "other name": lambda: carrier(name=b"dlpack_exchange_api_2"),
        "no function": lambda: carrier(null=True),
        "newer": lambda: carrier(major=2),
        "newer, and an older one": lambda: carrier(major=2, older=older.table),
        "inherited": lambda: carrier(inherited=True),
    }.get(case, carrier)()
    if case == "no capsule":
        kind.__dlpack_c_exchange_api__ = 7  # type: ignore[attr-defined]
    result, new_kv, _ = write(kind, strides=case == "strides")
    assert result is None
    assert (new_kv.read, new_kv.asked) == ((1, 0) if reads else (0, 5))


@pytest.mark.parametrize("fields", [
    {"type_lanes": 2}, {"type_bits": 4}, {"type_bits": 12}, {"n_dims": 9, "shape": (1,) * 9},
    {"n_dims": -1}, {"device_type": 2}, {"device_type": 10}], ids=str)
def test_what_a_table_cannot_say(fields: dict[str, Any]) -> None:
    """Anything unusual is left to the methods, which here say that all is well."""
    result, new_kv, _ = write(carrier(), **fields)
    assert result is None
    assert new_kv.read == 1 and new_kv.asked > 0


def test_a_table_that_fails() -> None:
    result, new_kv, _ = write(carrier(result=-1))
    assert result is None and new_kv.read == 1 and new_kv.asked > 0


@pytest.mark.parametrize("fields, words", [
    ({"data": None}, "no memory"), ({"strides_0": 2**62}, "overflows"),
    ({"strides_0": -16}, "negative"), ({"shape": (-TOKENS, HEADS, DIM)}, "new_kv")], ids=str)
def test_what_a_table_says_is_checked(fields: dict[str, Any], words: str) -> None:
    result, new_kv, _ = write(carrier(), **fields)
    assert result is not None and result[0] is pagedkv.InvalidError and words in result[1]
    assert new_kv.asked == 0


def test_more_types_than_are_remembered() -> None:
    for _ in range(40):
        result, new_kv, _ = write(carrier())
        assert result is None and (new_kv.read, new_kv.asked) == (1, 0)
