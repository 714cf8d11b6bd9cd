"""Bad input of host arrays: which exception, which argument, which index, and nothing written.

pagedkv.torch and pagedkv.jax have their own in their files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pagedkv
import pytest
import torch
from pagedkv import InvalidError, RangeError, StrictError, UnsupportedError, sizing

from model import Arena, RawDLPack, check_same

PAGE, PAGES, TOKENS, HEADS, DIM = 16, 4, 24, 2, 8
SLOTS = PAGE * PAGES
SLICES = [[5, 0, 3], [16, 3, 16], [40, 19, 0], [60, 19, 4]]  # of which the last is the fourth


def good() -> dict[str, Any]:
    """Arguments that are right; each test spoils one."""
    return {
        "new_kv": np.ones((TOKENS, HEADS, DIM), np.float32),
        "slices": np.array(SLICES, np.int32).T.copy(),
        "kv_cache": Arena.make((SLOTS, HEADS, DIM), np.float32).array,
        "num_kv_update_slices": 4,
        "page_size": PAGE,
    }


def bytes_of(array: Any) -> Any:
    """Everything that the memory under an array holds."""
    if isinstance(array, torch.Tensor):
        if array.is_meta or array.is_sparse or array.untyped_storage().nbytes() == 0:
            return np.zeros(0, np.uint8)  # no bytes to look at
        items = array.untyped_storage().nbytes() // array.element_size()
        return torch.as_strided(array, (items,), (1,), 0).clone().numpy()
    if not isinstance(array, np.ndarray) or array.dtype.hasobject:
        return np.zeros(0, np.uint8)
    while isinstance(array.base, np.ndarray):
        array = array.base
    return np.frombuffer(array.tobytes(), np.uint8)


def refused(call: Callable[[], Any], kind: type[Exception], name: str, index: int,
            watched: list[Any]) -> Exception:
    """The call raises; the message names the argument, `index` the slice; nothing changed."""
    before = [bytes_of(array) for array in watched]
    with pytest.raises(kind) as caught:
        call()
    error = caught.value
    assert type(error) is kind, error
    assert name in str(error), f"{error!r} does not name {name}"
    if isinstance(error, pagedkv.Error):
        assert error.index == index, f"{error!r}: index {error.index}"
    for old, array in zip(before, watched, strict=True):
        check_same(bytes_of(array), old, call=name)
    return error


def read_only(array: Any) -> Any:
    array.flags.writeable = False
    return array


def freed(tensor: torch.Tensor) -> torch.Tensor:
    tensor.untyped_storage().resize_(0)
    return tensor


def deleted(array: Any) -> Any:
    array.delete()
    return array


def strided(shape: tuple[int, ...], strides: tuple[int, ...]) -> Any:
    memory = np.zeros(SLOTS * HEADS * DIM * 4, np.float32)
    return np.lib.stride_tricks.as_strided(memory, shape, strides)


class NoArray:
    __dlpack__ = None


class BrokenDLPack:
    def __dlpack__(self, **_: Any) -> Any:
        raise BufferError("no export today")

    def __dlpack_device__(self) -> Any:
        return (1, 0)


class NotACapsule(BrokenDLPack):
    def __dlpack__(self, **_: Any) -> Any:
        return "capsule"


class ReadOnlyDLPack(BrokenDLPack):
    def __dlpack__(self, **arguments: Any) -> Any:
        return read_only(np.zeros((SLOTS, HEADS, DIM), np.float32)).__dlpack__(**arguments)


CACHE = (SLOTS, HEADS, DIM)
F4 = np.float32
OBJECTS = np.dtype([("a", np.float32), ("b", object)])

# What is spoilt -> the exception and the value in place of the right one.
ARGUMENTS: dict[str, tuple[str, type[Exception], Callable[[], Any]]] = {
    # no array at all
    "new_kv: None": ("new_kv", InvalidError, lambda: None),
    "new_kv: list": ("new_kv", InvalidError, lambda: [[[1.0] * DIM] * HEADS] * TOKENS),
    "new_kv: object": ("new_kv", InvalidError, NoArray),
    "new_kv: failing export": ("new_kv", InvalidError, BrokenDLPack),
    "new_kv: wrong export": ("new_kv", InvalidError, NotACapsule),
    "slices: None": ("slices", InvalidError, lambda: None),
    "slices: list": ("slices", InvalidError, lambda: [list(c) for c in zip(*SLICES, strict=True)]),
    "kv_cache: list": ("kv_cache", InvalidError, lambda: [[[1.0]]]),
    "kv_cache: bytes": ("kv_cache", InvalidError, lambda: bytearray(100)),
    "n: None": ("num_kv_update_slices", InvalidError, lambda: None),
    "n: str": ("num_kv_update_slices", InvalidError, lambda: "4"),
    "n: float": ("num_kv_update_slices", InvalidError, lambda: 4.0),
    # dtypes
    "new_kv: int16": ("new_kv", InvalidError, lambda: np.ones((TOKENS, HEADS, DIM), "i2")),
    "new_kv: float64": ("new_kv", InvalidError, lambda: np.ones((TOKENS, HEADS, DIM))),
    "new_kv: int32": ("new_kv", InvalidError, lambda: np.ones((TOKENS, HEADS, DIM), "i4")),
    "new_kv: other endian": ("new_kv", InvalidError, lambda: np.ones((TOKENS, HEADS, DIM), ">f4")),
    "new_kv: objects": ("new_kv", InvalidError, lambda: np.full((TOKENS, HEADS, DIM), 1, object)),
    "new_kv: strings": ("new_kv", InvalidError, lambda: np.full((TOKENS, HEADS, DIM), "a")),
    "new_kv: object fields": (
        "new_kv", InvalidError, lambda: np.zeros((TOKENS, HEADS, DIM), OBJECTS)),
    "new_kv: 32-byte items": (
        "new_kv", UnsupportedError, lambda: np.zeros((TOKENS, HEADS, DIM), np.clongdouble)),
    "kv_cache: float64": ("kv_cache", InvalidError, lambda: np.zeros(CACHE)),
    "kv_cache: float8": (
        "kv_cache", InvalidError, lambda: np.zeros(CACHE, ml_dtypes.float8_e4m3b11fnuz)),
    "slices: int64": ("slices", InvalidError, lambda: np.array(SLICES).T.copy()),
    "slices: uint32": ("slices", InvalidError, lambda: np.array(SLICES, np.uint32).T.copy()),
    "slices: float32": ("slices", InvalidError, lambda: np.array(SLICES, F4).T.copy()),
    "slices: other endian": ("slices", InvalidError, lambda: np.array(SLICES, ">i4").T.copy()),
    "n: float32": ("num_kv_update_slices", InvalidError, lambda: np.array([4], F4)),
    "n: uint32": ("num_kv_update_slices", InvalidError, lambda: np.array([4], np.uint32)),
    "n: int16": ("num_kv_update_slices", InvalidError, lambda: np.array([4], np.int16)),
    # shapes
    "new_kv: 2 axes": ("new_kv", InvalidError, lambda: np.ones((TOKENS, HEADS * DIM), F4)),
    "new_kv: 4 axes": ("new_kv", InvalidError, lambda: np.ones((1, TOKENS, HEADS, DIM), F4)),
    "new_kv: 9 axes": ("new_kv", InvalidError, lambda: np.ones((1,) * 9, F4)),
    "new_kv: heads": ("new_kv", InvalidError, lambda: np.ones((TOKENS, HEADS + 1, DIM), F4)),
    "new_kv: head_dim": ("new_kv", InvalidError, lambda: np.ones((TOKENS, HEADS, DIM - 1), F4)),
    "new_kv: heads and head_dim swapped": (
        "new_kv", InvalidError, lambda: np.ones((TOKENS, DIM, HEADS), F4)),
    "kv_cache: 1 axis": ("kv_cache", InvalidError, lambda: np.zeros(SLOTS, F4)),
    "kv_cache: 2 axes": ("kv_cache", InvalidError, lambda: np.zeros((SLOTS, HEADS * DIM), F4)),
    "kv_cache: 5 axes": ("kv_cache", InvalidError, lambda: np.zeros((1, 1, *CACHE), F4)),
    "kv_cache: part of a page": ("kv_cache", InvalidError, lambda: np.zeros((60, HEADS, DIM), F4)),
    "kv_cache: no page": ("kv_cache", InvalidError, lambda: np.zeros((0, HEADS, DIM), F4)),
    "slices: [N, 3]": ("slices", InvalidError, lambda: np.array(SLICES, np.int32)),
    "slices: [N, 3].T": ("slices", InvalidError, lambda: np.array(SLICES, np.int32).T),
    "slices: 1 axis": ("slices", InvalidError, lambda: np.array(SLICES, np.int32).ravel()),
    "slices: [2, N]": ("slices", InvalidError, lambda: np.zeros((2, 4), np.int32)),
    "slices: [4, N]": ("slices", InvalidError, lambda: np.zeros((4, 4), np.int32)),
    "slices: reversed": ("slices", InvalidError, lambda: np.zeros((3, 4), np.int32)[:, ::-1]),
    "n: two": ("num_kv_update_slices", InvalidError, lambda: np.array([1, 1], np.int32)),
    "n: none": ("num_kv_update_slices", InvalidError, lambda: np.zeros(0, np.int32)),
    "n: [1, 1]": ("num_kv_update_slices", InvalidError, lambda: np.array([[4]], np.int32)),
    "page_size: 0": ("page_size", InvalidError, lambda: 0),
    "page_size: -16": ("page_size", InvalidError, lambda: -16),
    "page_size: 15": ("kv_cache", InvalidError, lambda: 15),
    # devices
    "new_kv: meta": (
        "new_kv", UnsupportedError, lambda: torch.ones(TOKENS, HEADS, DIM, device="meta")),
    "slices: meta": (
        "slices", UnsupportedError, lambda: torch.ones(3, 4, dtype=torch.int32, device="meta")),
    "kv_cache: meta": ("kv_cache", UnsupportedError, lambda: torch.zeros(CACHE, device="meta")),
    "n: meta": ("num_kv_update_slices", UnsupportedError,
                lambda: torch.ones(1, dtype=torch.int32, device="meta")),
    # strides that a cache cannot have, or that nobody can use in place
    "new_kv: gaps in heads": (
        "new_kv", InvalidError, lambda: np.ones((TOKENS, HEADS, 2 * DIM), F4)[..., ::2]),
    "new_kv: reversed": ("new_kv", InvalidError, lambda: np.ones((TOKENS, HEADS, DIM), F4)[::-1]),
    "kv_cache: gaps in heads": (
        "kv_cache", InvalidError, lambda: np.zeros((SLOTS, HEADS, 2 * DIM), F4)[..., ::2]),
    "kv_cache: Fortran": ("kv_cache", InvalidError, lambda: np.zeros(CACHE, F4, "F")),
    "kv_cache: reversed": ("kv_cache", InvalidError, lambda: np.zeros(CACHE, F4)[::-1]),
    "kv_cache: one slot for all": ("kv_cache", InvalidError, lambda: strided(CACHE, (0, 32, 4))),
    "kv_cache: overlapping slots": ("kv_cache", InvalidError, lambda: strided(CACHE, (32, 32, 4))),
    "kv_cache: overlapping heads": ("kv_cache", InvalidError, lambda: strided(CACHE, (64, 28, 4))),
    "kv_cache: overlapping pages": (
        "kv_cache", InvalidError, lambda: strided((PAGES, PAGE, HEADS, DIM), (960, 64, 32, 4))),
    "kv_cache: expanded tensor": (
        "kv_cache", InvalidError, lambda: torch.zeros(1, HEADS, DIM).expand(CACHE)),
    # memory that must not be written, or is gone
    "kv_cache: read-only": ("kv_cache", InvalidError, lambda: read_only(np.zeros(CACHE, F4))),
    "kv_cache: read-only bits": (
        "kv_cache", InvalidError,
        lambda: np.frombuffer(bytes(SLOTS * HEADS * DIM * 4), F4).reshape(CACHE)),
    "kv_cache: read-only DLPack": ("kv_cache", InvalidError, ReadOnlyDLPack),
    "kv_cache: JAX": ("kv_cache", InvalidError, lambda: jnp.zeros(CACHE)),
    "kv_cache: broadcast": (
        "kv_cache", InvalidError, lambda: np.broadcast_to(np.zeros((HEADS, DIM), F4), CACHE)),
    "new_kv: freed": ("new_kv", InvalidError, lambda: freed(torch.ones(TOKENS, HEADS, DIM))),
    "slices: freed": ("slices", InvalidError, lambda: freed(torch.ones(3, 4, dtype=torch.int32))),
    "kv_cache: freed": ("kv_cache", InvalidError, lambda: freed(torch.zeros(CACHE))),
    "n: freed": ("num_kv_update_slices", InvalidError, lambda: freed(torch.tensor([4]))),
    "new_kv: deleted": ("new_kv", InvalidError, lambda: deleted(jnp.ones((TOKENS, HEADS, DIM)))),
    "slices: deleted": ("slices", InvalidError, lambda: deleted(jnp.ones((3, 4), jnp.int32))),
    "kv_cache: deleted": ("kv_cache", InvalidError, lambda: deleted(jnp.zeros(CACHE))),
    "n: deleted": ("num_kv_update_slices", InvalidError, lambda: deleted(jnp.array([4]))),
    "kv_cache: sparse": ("kv_cache", InvalidError, lambda: torch.zeros(CACHE).to_sparse()),
    # counts
    "n: columns + 1": ("num_kv_update_slices", RangeError, lambda: 5),
    "n: -1": ("num_kv_update_slices", RangeError, lambda: -1),
    "n: [5]": ("num_kv_update_slices", RangeError, lambda: np.array([5], np.int32)),
    "n: [-1]": ("num_kv_update_slices", RangeError, lambda: np.array([-1], np.int32)),
    "n: 2**32 + 4": ("num_kv_update_slices", RangeError, lambda: 2**32 + 4),
    "n: [2**32 + 4]": ("num_kv_update_slices", RangeError, lambda: np.array([2**32 + 4])),
    "n: [-2**32 + 4]": ("num_kv_update_slices", RangeError, lambda: np.array([-2**32 + 4])),
    "n: 2**80": ("num_kv_update_slices", RangeError, lambda: 2**80),
    "n: -2**80": ("num_kv_update_slices", RangeError, lambda: -2**80),
    "n: tensor": ("num_kv_update_slices", RangeError, lambda: torch.tensor([5])),
}


@pytest.mark.parametrize("case", list(ARGUMENTS))
def test_arguments(case: str) -> None:
    name, kind, make = ARGUMENTS[case]
    arguments = good()
    value = make()
    if kind is UnsupportedError and case == "new_kv: 32-byte items":
        arguments["kv_cache"] = np.zeros(CACHE, np.clongdouble)
    elif case in ("new_kv: strings", "new_kv: object fields", "new_kv: objects"):
        arguments["kv_cache"] = np.zeros(CACHE, value.dtype)
    key = {"n": "num_kv_update_slices"}.get(case.split(":")[0], case.split(":")[0])
    cache = arguments["kv_cache"]
    arguments[key] = value
    refused(lambda: pagedkv.kv_cache_update(**arguments), kind, name, -1, [cache, value])


def test_good_arguments_are_good() -> None:
    """Else the tests above would pass for nothing."""
    arguments = good()
    pagedkv.kv_cache_update(**arguments)
    assert (arguments["kv_cache"] == 1).all(axis=(1, 2)).sum() == 23


@pytest.mark.parametrize("value", ["16", [16], 16.0, np.array([16, 16])])
def test_a_page_size_that_is_no_int(value: Any) -> None:
    with pytest.raises(TypeError):
        pagedkv.kv_cache_update(**good() | {"page_size": value})


def test_strict_mode_needs_a_page_size() -> None:
    """Three axes do not say it; four do."""
    arguments = good() | {"page_size": None, "strict": True}
    refused(lambda: pagedkv.kv_cache_update(**arguments), InvalidError, "page_size", -1,
            [arguments["kv_cache"]])
    both = apart()
    both["key_cache"] = both["key_cache"].reshape(CACHE)
    both["value_cache"] = both["value_cache"].reshape(SLOTS, HEADS, 5)
    refused(lambda: pagedkv.kv_cache_update_separate(**both, strict=True), InvalidError,
            "page_size", -1, [both["key_cache"], both["value_cache"]])


# Fields of a DLPack export -> the exception, and what the message says.
EXPORTS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "CUDA": ({"device_type": 2}, UnsupportedError, "DLPack device 2"),
    "CUDA host": ({"device_type": 3}, UnsupportedError, "DLPack device 3"),
    "ROCm": ({"device_type": 10}, UnsupportedError, "DLPack device 10"),
    "read-only": ({"flags": 1}, InvalidError, "read-only"),
    "newer version": ({"major": 2}, InvalidError, "no array"),
    "lanes": ({"type_lanes": 2}, InvalidError, "whole bytes"),
    "4 bits": ({"type_bits": 4}, InvalidError, "whole bytes"),
    "12 bits": ({"type_bits": 12}, InvalidError, "whole bytes"),
    "another kind": ({"type_code": 0}, InvalidError, "int32"),
    "NULL": ({"data": None}, InvalidError, "no memory"),
    "9 axes": ({"n_dims": 9, "shape": (1,) * 9}, InvalidError, "too many dimensions"),
    "-1 axes": ({"n_dims": -1}, InvalidError, "too many dimensions"),
    "stride": ({"strides_0": 2**62}, InvalidError, "overflows"),
    "stride that wraps when a page is counted": ({"strides_0": 2**59}, InvalidError, "overflows"),
    "negative stride": ({"strides_0": -16}, InvalidError, "negative"),
    "negative shape": ({"shape": (-SLOTS, HEADS, DIM)}, InvalidError, "kv_cache"),
    "shape of more bytes than 63 bits count": (
        {"shape": (2**50 * PAGE, HEADS, DIM)}, InvalidError, "kv_cache"),
}


@pytest.mark.parametrize("name", list(EXPORTS))
def test_dlpack_exports(name: str) -> None:
    """No array of NumPy can be like that; a CUDA tensor's export is refused unread."""
    fields, kind, words = EXPORTS[name]
    arguments = good()
    cache = np.zeros(CACHE, F4)
    if name == "shape of more bytes than 63 bits count":
        fields = fields | {"strides_0": 2**47}
    export = RawDLPack(cache, **fields)
    error = refused(lambda: pagedkv.kv_cache_update(**arguments | {"kv_cache": export}), kind,
                    "kv_cache", -1, [cache])
    assert words in str(error)
    assert len(export.deleted) == 1


# ---- slices ------------------------------------------------------------------------

INT_MAX = 2**31 - 1

# Row and value put into a column -> the rule, and upstream's words.
BROKEN: dict[str, tuple[int, int, str, str]] = {
    "new_kv_start": (1, -1, "NEW_KV_START", "new_kv_start=-1 must be greater than"),
    "new_kv_start, least": (1, -2**31, "NEW_KV_START", "new_kv_start=-2147483648 must be greater"),
    "kv_cache_start": (0, -1, "KV_CACHE_START", "kv_cache_start=-1 must be greater than"),
    "slice_len": (2, -1, "SLICE_LEN", "slice_len=-1 must be"),
    "new_kv_end": (1, TOKENS, "NEW_KV_END", f"new_kv_start={TOKENS} + slice_len="),
    "new_kv_end, most": (1, INT_MAX, "NEW_KV_END", f"new_token_num={TOKENS}"),
    "kv_cache_end": (0, SLOTS, "KV_CACHE_END", f"kv_cache_start={SLOTS} + slice_len="),
    "kv_cache_end, most": (0, INT_MAX, "KV_CACHE_END", f"kv_cache_token_num={SLOTS}"),
    "length, most": (2, INT_MAX, "NEW_KV_END", f"slice_len={INT_MAX} must be less or equal to"),
}


@pytest.mark.parametrize("column", [0, 1, 3])
@pytest.mark.parametrize("case", list(BROKEN))
@pytest.mark.parametrize("gather", [False, True])
def test_slices_out_of_bounds(case: str, column: int, gather: bool) -> None:
    """The index names the slice; slices before it are not written either."""
    row, value, rule, words = BROKEN[case]
    arguments = good()
    arguments["slices"][row, column] = value
    if gather:
        arguments["out"] = arguments.pop("new_kv")
    call = pagedkv.kv_cache_gather if gather else pagedkv.kv_cache_update
    error = refused(lambda: call(**arguments), RangeError, words, column,
                    [arguments["kv_cache"], arguments.get("out")])
    assert isinstance(error, pagedkv.Error)
    assert (error.rule, error.status, error.layer) == (rule, "RANGE", -1)
    assert f"slice {column}" in str(error)
    with pytest.raises(RangeError) as caught:
        pagedkv.check_slices(arguments["slices"], 4, num_tokens=TOKENS, num_slots=SLOTS,
                             page_size=PAGE)
    assert (caught.value.index, caught.value.rule) == (column, rule)
    # Behind the count the same column is no fault.
    pagedkv.check_slices(arguments["slices"], column, num_tokens=TOKENS, num_slots=SLOTS,
                         page_size=PAGE)


def test_the_first_bad_slice_is_named() -> None:
    arguments = good()
    arguments["slices"][0, 3] = arguments["slices"][0, 1] = -5
    refused(lambda: pagedkv.kv_cache_update(**arguments), RangeError, "kv_cache_start=-5", 1,
            [arguments["kv_cache"]])


# Row, column, value -> the index and upstream's words; SLICES less its empty slice is strict.
STRICT: dict[str, tuple[int, int, int, int, str]] = {
    "empty": (2, 1, 0, 1, "slice_len=0 must be less or equal to"),
    "longer than a page": (2, 1, 17, 1, "slice_len=17 must be less or equal to"),
    "over a page end": (0, 1, 17, 1, "Each slice must reside in the same page"),
    "gap": (1, 2, 20, 2, "is expeced to equal to"),
    "overlap": (0, 2, 6, -2, "Overlap detected in kv_cache intervals"),
}


@pytest.mark.parametrize("case", list(STRICT))
def test_strict_rules(case: str) -> None:
    row, column, value, index, words = STRICT[case]
    arguments = good()
    arguments["slices"] = np.array([SLICES[0], SLICES[1], SLICES[3]], np.int32).T.copy()
    arguments["num_kv_update_slices"] = 3
    check = {"num_tokens": TOKENS, "num_slots": SLOTS, "page_size": PAGE}
    assert pagedkv.check_slices(arguments["slices"], 3, strict=True, **check) == 23
    arguments["slices"][row, column] = value
    if index == -2:  # of two that overlap either may be named
        with pytest.raises(StrictError) as overlap:
            pagedkv.check_slices(arguments["slices"], 3, strict=True, **check)
        index = overlap.value.index
        assert index in (0, 2)
    error = refused(lambda: pagedkv.kv_cache_update(**arguments, strict=True), StrictError, words,
                    index, [arguments["kv_cache"]])
    assert isinstance(error, ValueError) and isinstance(error, pagedkv.Error)
    pagedkv.check_slices(arguments["slices"], 3, **check)  # not strict: nothing wrong


# ---- memory that overlaps ------------------------------------------------------------


def test_new_kv_inside_the_cache() -> None:
    memory = np.zeros((SLOTS + TOKENS, HEADS, DIM), F4)
    slices = np.array(SLICES, np.int32).T.copy()
    for first in (0, 10, SLOTS - 1):
        refused(lambda at=first: pagedkv.kv_cache_update(
            memory[at:at + TOKENS], slices, memory[:SLOTS], 4, page_size=PAGE),
            InvalidError, "kv_cache", -1, [memory])
        refused(lambda at=first: pagedkv.kv_cache_gather(
            memory[:SLOTS], slices, 4, memory[at:at + TOKENS], page_size=PAGE),
            InvalidError, "kv_cache", -1, [memory])
    pagedkv.kv_cache_update(memory[SLOTS:], slices, memory[:SLOTS], 4, page_size=PAGE)


# ---- K and V apart, gather -------------------------------------------------------------


def apart() -> dict[str, Any]:
    return {
        "key": np.ones((TOKENS, HEADS, DIM), F4), "value": np.ones((TOKENS, HEADS, 5), F4),
        "slices": np.array(SLICES, np.int32).T.copy(),
        "key_cache": np.zeros((PAGES, PAGE, HEADS, DIM), F4),
        "value_cache": np.zeros((PAGES, PAGE, HEADS, 5), F4),
        "num_kv_update_slices": 4,
    }


APART: dict[str, tuple[str, Callable[[], Any]]] = {
    "key": ("key", lambda: np.ones((TOKENS, HEADS, DIM + 1), F4)),
    "key, heads": ("key", lambda: np.ones((TOKENS, HEADS + 1, DIM), F4)),
    "key, dtype": ("key", lambda: np.ones((TOKENS, HEADS, DIM), np.float16)),
    "value": ("value", lambda: np.ones((TOKENS, HEADS, DIM), F4)),
    "value, tokens": ("value", lambda: np.ones((TOKENS - 1, HEADS, 5), F4)),
    "value, dtype": ("value", lambda: np.ones((TOKENS, HEADS, 5), np.int32)),
    "value, no array": ("value", lambda: 3),
    "key_cache, pages": ("value_cache", lambda: np.zeros((PAGES + 1, PAGE, HEADS, DIM), F4)),
    "key_cache, read-only": ("key_cache", lambda: read_only(
        np.zeros((PAGES, PAGE, HEADS, DIM), F4))),
    "value_cache, pages": ("value_cache", lambda: np.zeros((PAGES - 1, PAGE, HEADS, 5), F4)),
    "value_cache, page size": ("value_cache", lambda: np.zeros((8, 8, HEADS, 5), F4)),
    "value_cache, read-only": ("value_cache", lambda: read_only(
        np.zeros((PAGES, PAGE, HEADS, 5), F4))),
    "value_cache, strides": ("value_cache", lambda: np.zeros((PAGES, PAGE, HEADS, 10), F4)[
        ..., ::2]),
    "value_cache, freed": ("value_cache", lambda: freed(torch.zeros(PAGES, PAGE, HEADS, 5))),
    "value_cache, meta": ("value_cache", lambda: torch.zeros(PAGES, PAGE, HEADS, 5,
                                                             device="meta")),
}


@pytest.mark.parametrize("case", list(APART))
@pytest.mark.parametrize("gather", [False, True])
def test_separate(case: str, gather: bool) -> None:
    name, make = APART[case]
    arguments = apart()
    if gather and "read-only" in case:
        return  # a gather only reads the caches
    arguments[case.split(",")[0]] = make()
    kind = UnsupportedError if "meta" in case else InvalidError
    watched = [arguments[k] for k in ("key_cache", "value_cache", "key", "value")]
    call: Callable[..., Any] = pagedkv.kv_cache_update_separate
    if gather:
        call = pagedkv.kv_cache_gather_separate
        arguments["key_out"] = arguments.pop("key")
        arguments["value_out"] = arguments.pop("value")
        name = {"key": "key_out", "value": "value_out"}.get(name, name)
    refused(lambda: call(**arguments), kind, name, -1, watched)


def test_separate_slices_and_counts() -> None:
    arguments = apart()
    watched = [arguments["key_cache"], arguments["value_cache"]]
    refused(lambda: pagedkv.kv_cache_update_separate(**arguments | {"num_kv_update_slices": 5}),
            RangeError, "num_kv_update_slices", -1, watched)
    arguments["slices"][0, 3] = SLOTS
    refused(lambda: pagedkv.kv_cache_update_separate(**arguments), RangeError, "kv_cache_start=64",
            3, watched)


def test_key_and_value_caches_that_overlap() -> None:
    memory = np.zeros((2, PAGES, PAGE, HEADS, DIM), F4)
    arguments = apart() | {"value": np.ones((TOKENS, HEADS, DIM), F4), "key_cache": memory[0]}
    for value_cache in (memory[0], memory.reshape(-1)[8:8 + memory[0].size].reshape(
            memory[0].shape)):
        arguments["value_cache"] = value_cache
        refused(lambda: pagedkv.kv_cache_update_separate(**arguments), InvalidError, "value_cache",
                -1, [memory])
    pagedkv.kv_cache_update_separate(**arguments | {"value_cache": memory[1]})


def test_gather_out() -> None:
    cache = np.ones(CACHE, F4)
    slices = np.array(SLICES, np.int32).T.copy()
    shape = (TOKENS, HEADS, DIM)
    for out in (read_only(np.zeros(shape, F4)), jnp.zeros(shape), np.zeros(shape, np.float64),
                np.zeros((TOKENS, HEADS + 1, DIM), F4), np.zeros((HEADS, DIM), F4), None,
                np.broadcast_to(np.zeros((HEADS, DIM), F4), shape), strided(shape, (32, 32, 4)),
                np.zeros((TOKENS, HEADS, 2 * DIM), F4)[..., ::2], freed(torch.zeros(shape))):
        refused(lambda o=out: pagedkv.kv_cache_gather(cache, slices, 4, o, page_size=PAGE),
                InvalidError, "out", -1, [cache, out])
    pagedkv.kv_cache_gather(read_only(cache), slices, 4, np.zeros(shape, F4), page_size=PAGE)


# ---- plans -------------------------------------------------------------------------


PLANS: dict[str, tuple[dict[str, Any], type[Exception], str, int]] = {
    "computed": ({"computed": [0, -1]}, RangeError, "computed", 1),
    "scheduled": ({"scheduled": [-7, 4]}, RangeError, "scheduled", 0),
    "too many tokens": ({"scheduled": [2**31 - 1, 2**31 - 1],
                         "pages": np.zeros((2, 2), np.int32)}, RangeError, "tokens", 1),
    "table too short": ({"scheduled": [16, 17]}, RangeError, "request 1", 1),
    "table too short, 2-D": ({"scheduled": [16, 17], "pages": np.array([[1], [2]])},
                             RangeError, "request 1", 1),
    "page below 0": ({"pages": [[1], [-1]]}, RangeError, "page", 1),
    "page over the cache": ({"pages": [[1], [9]], "num_pages": 9}, RangeError, "page", 1),
    "page over int32": ({"pages": [[2**27], [1]]}, RangeError, "page", 0),
    "capacity": ({"capacity": 1}, RangeError, "slices do not fit", 1),
    "capacity below 0": ({"capacity": -1}, InvalidError, "capacity", -1),
    "lengths": ({"scheduled": [4]}, InvalidError, "scheduled", -1),
    "floats": ({"computed": [0.5, 0]}, InvalidError, "computed", -1),
    "strings": ({"scheduled": ["a", "b"]}, InvalidError, "scheduled", -1),
    "over int32": ({"computed": [2**31, 0]}, InvalidError, "computed", -1),
    "2-D computed": ({"computed": [[0, 0]]}, InvalidError, "computed", -1),
    "pages, floats": ({"pages": [[1.5], [2]]}, InvalidError, "pages", -1),
    "pages, over int32": ({"pages": [[2**40], [2]]}, InvalidError, "pages", -1),
    "pages, not lists": ({"pages": [1, 2]}, InvalidError, "pages", 0),
    "pages, lists too deep": ({"pages": [[1], [[2]]]}, InvalidError, "pages", 1),
    "pages, 1 axis": ({"pages": np.array([1, 2])}, InvalidError, "pages", -1),
    "pages, requests": ({"pages": [[1]]}, InvalidError, "pages", -1),
    "pages, rows": ({"pages": np.zeros((3, 2), np.int32)}, InvalidError, "pages", -1),
    "pages, None": ({"pages": None}, InvalidError, "pages", -1),
    "CSR, short indptr": ({"pages": ([0, 1], [1, 2])}, InvalidError, "indptr", -1),
    "CSR, over the end": ({"pages": ([0, 1, 3], [1, 2])}, InvalidError, "indptr", -1),
    "CSR, falling": ({"pages": ([0, 2, 1], [1, 2])}, RangeError, "indptr", 0),
    "CSR, far": ({"pages": ([0, 2**30, 2], [1, 2]), "scheduled": [2**25, 1]},
                 RangeError, "indptr", 0),
    "CSR, from -1": ({"pages": ([-1, 1, 2], [1, 2])}, RangeError, "indptr", 0),
    "CSR, from 1": ({"pages": ([1, 1, 2], [1, 2])}, RangeError, "indptr", 0),
    "page_size": ({"page_size": 0}, InvalidError, "page_size", -1),
    "max_slice_tokens": ({"max_slice_tokens": 15}, InvalidError, "max_slice_tokens", -1),
    "max_slice_tokens below 0": ({"max_slice_tokens": -1}, InvalidError, "max_slice_tokens", -1),
    "num_pages": ({"num_pages": -1}, InvalidError, "n_pages", -1),
}


@pytest.mark.parametrize("case", list(PLANS))
def test_plans(case: str) -> None:
    change, kind, name, index = PLANS[case]
    arguments = {"computed": [0, 0], "scheduled": [4, 4], "pages": [[1], [2]], "page_size": 16}
    assert pagedkv.plan(**arguments).num_slices == 2
    refused(lambda: pagedkv.plan(**arguments | change), kind, name, index, [])


STEPS: dict[str, tuple[dict[str, Any], type[Exception], str, int]] = {
    "requests": ({"max_num_reqs": 1}, RangeError, "max_num_reqs", 1),
    "tokens": ({"scheduled": [40, 40]}, RangeError, "max_num_batched_tokens", 1),
    "width": ({"scheduled": [4, 30], "block_tables_width": 1}, RangeError, "", 1),
    "computed": ({"computed": [-1, 0]}, RangeError, "computed", 0),
    "table": ({"scheduled": [33, 4]}, RangeError, "", 0),
    "max_num_reqs": ({"max_num_reqs": 0}, InvalidError, "", -1),
    "max_num_batched_tokens": ({"max_num_batched_tokens": 0}, InvalidError, "", -1),
    "num_slices_per_block": ({"num_slices_per_block": 0}, InvalidError, "a limit of the step", -1),
}


@pytest.mark.parametrize("case", list(STEPS))
def test_steps(case: str) -> None:
    change, kind, name, index = STEPS[case]
    arguments = {
        "computed": [0, 0], "scheduled": [4, 4], "pages": [[1, 2], [3, 4]], "page_size": 16,
        "max_num_reqs": 2, "max_num_batched_tokens": 64, "block_tables_width": 4}
    assert pagedkv.plan_step(**arguments).num_tokens == 8
    with pytest.raises(kind) as caught:
        pagedkv.plan_step(**arguments | change)
    assert name in str(caught.value)
    assert caught.value.index == index


SLOT_MAPPINGS: dict[str, tuple[dict[str, Any], type[Exception], str, int]] = {
    "below -1": ({"slot_mapping": [3, -1, -2]}, RangeError, "token 2", 2),
    "over the cache": ({"num_slots": 5}, RangeError, "token 2", 2),
    "over int32": ({"slot_mapping": [3, 2**31, 5]}, RangeError, "token 1", 1),
    "capacity": ({"capacity": 0}, RangeError, "slices do not fit", 0),
    "floats": ({"slot_mapping": [3.0, 4.0]}, InvalidError, "slot_mapping", -1),
    "int16": ({"slot_mapping": np.array([3], np.int16)}, InvalidError, "slot_mapping", -1),
    "2 axes": ({"slot_mapping": [[3, 4]]}, InvalidError, "slot_mapping", -1),
    "starts fall": ({"query_start_loc": [0, 2, 1]}, RangeError, "query_start_loc", 2),
    "starts over the end": ({"query_start_loc": [0, 4]}, RangeError, "query_start_loc", 1),
    "starts below 0": ({"query_start_loc": [-1, 3]}, RangeError, "query_start_loc", 0),
    "no starts": ({"query_start_loc": []}, InvalidError, "query_start_loc", -1),
    "starts of 2 axes": ({"query_start_loc": [[0, 3]]}, InvalidError, "query_start_loc", -1),
    "page_size": ({"page_size": 0}, InvalidError, "", -1),
}


@pytest.mark.parametrize("case", list(SLOT_MAPPINGS))
def test_slot_mappings(case: str) -> None:
    change, kind, name, index = SLOT_MAPPINGS[case]
    arguments = {"slot_mapping": [3, 4, 5], "page_size": 16}
    assert pagedkv.plan_slot_mapping(**arguments).num_slices == 1
    refused(lambda: pagedkv.plan_slot_mapping(**arguments | change), kind, name, index, [])


def test_sizes() -> None:
    calls: list[Callable[[], Any]] = [
        lambda: sizing.token_buckets(0, 512), lambda: sizing.token_buckets(12, 512),
        lambda: sizing.token_buckets(16, 512, -1), lambda: sizing.token_bucket(513, 16, 512),
        lambda: sizing.request_buckets(0, 8), lambda: sizing.padded_num_reqs(-1, 8),
        lambda: sizing.padded_num_slices(0, 16, 16), lambda: sizing.page_size(0),
        lambda: sizing.scratch_page_bytes(16, 8, 128, "f128"),
        lambda: sizing.scratch_page_bytes(0, 8, 128, "bf16"),
        lambda: sizing.num_slices_per_block(100, 99), lambda: sizing.min_page_size(0, 1),
        lambda: sizing.max_num_reqs(1, 0), lambda: pagedkv.set_num_threads(0),
        lambda: pagedkv.set_num_threads(-3)]
    for call in calls:
        with pytest.raises(InvalidError):
            call()
    with pytest.raises((InvalidError, OverflowError)):
        sizing.page_size(2**70)
    with pytest.raises(TypeError):
        sizing.page_size("16")  # type: ignore[arg-type]


# ---- classes -----------------------------------------------------------------------


def test_classes() -> None:
    """Each is one of Python's own too, so that callers need not know ours."""
    for kind, base in ((InvalidError, ValueError), (RangeError, ValueError),
                       (StrictError, ValueError), (UnsupportedError, NotImplementedError),
                       (pagedkv.NoMemoryError, MemoryError)):
        assert issubclass(kind, base) and issubclass(kind, pagedkv.Error)
    arguments = good() | {"num_kv_update_slices": 7}
    with pytest.raises(RangeError) as caught:
        pagedkv.kv_cache_update(**arguments)
    error = caught.value
    assert (error.rule, error.value, error.limit, error.index) == ("COUNT", 7, 4, -1)


def test_missing_and_unknown_arguments() -> None:
    arguments = good()
    with pytest.raises(TypeError):
        pagedkv.kv_cache_update(arguments["new_kv"], arguments["slices"], arguments["kv_cache"])
    with pytest.raises(TypeError):
        pagedkv.kv_cache_update(**arguments, pages=3)
    with pytest.raises(TypeError):  # page_size is a keyword, as upstream's is
        pagedkv.kv_cache_update(arguments["new_kv"], arguments["slices"], arguments["kv_cache"], 4,
                                16)
