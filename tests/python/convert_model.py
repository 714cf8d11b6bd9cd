"""Conversions and scales worked out with NumPy and ml_dtypes, by the rules of docs/numerics.md.

The rounding is ml_dtypes' and NumPy's; what they decide otherwise (saturation, NaNs) is written
down here as a rule of its own.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

F32 = np.float32
TINY = F32(2.0**-126)  # the least scale

FLOATS: dict[str, Any] = {
    "float32": np.dtype(np.float32), "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
QUANTISED: dict[str, Any] = {
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "int8": np.dtype(np.int8),
    "int4": np.dtype(np.uint8),  # two an item
}
DTYPES = FLOATS | QUANTISED
MOST = {"float8_e4m3fn": 448, "float8_e5m2": 57344, "int8": 127, "int4": 7}


def bits_of(x: Any) -> Any:
    """The bits of a float array, as unsigned integers of its size."""
    return np.ascontiguousarray(x).view(f"u{x.dtype.itemsize}")


def widen(x: Any) -> Any:
    """Exactly, as float32; a NaN is quiet and keeps its sign and payload."""
    x = np.ascontiguousarray(x)
    bits = bits_of(x).astype(np.uint32)
    if x.dtype == FLOATS["float32"]:
        nan = bits | 0x400000
    elif x.dtype == FLOATS["bfloat16"]:
        nan = bits << 16 | 0x400000
    else:
        assert x.dtype == FLOATS["float16"], x.dtype
        nan = (bits & 0x8000) << 16 | 0x7FC00000 | (bits & 0x3FF) << 13
    with np.errstate(invalid="ignore"):
        wide = x.astype(F32)
    return np.where(np.isnan(wide), nan, bits_of(wide)).astype(np.uint32).view(F32)


def _to_float(x: Any, to: str) -> Any:
    bits = bits_of(x)
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = bits_of(x.astype(FLOATS[to])).astype(np.uint32)
    if to == "bfloat16":
        nan = bits >> 16 | 0x40
    elif to == "float16":
        nan = bits >> 16 & 0x8000 | 0x7E00 | bits >> 13 & 0x3FF
    else:
        nan = bits | 0x400000
    size = FLOATS[to].itemsize
    return np.where(np.isnan(x), nan, rounded).astype(f"u{size}").view(np.uint8).reshape(
        *x.shape[:-1], x.shape[-1] * size)


def encode(x: Any, to: str) -> Any:
    """The bytes of a float32 array in the format `to`, rounded once."""
    if to in FLOATS:
        return _to_float(x, to)
    if to in ("int8", "int4"):
        low, high = (-128, 127) if to == "int8" else (-8, 7)
        whole = np.where(np.isnan(x), 0, np.clip(np.rint(x), low, high)).astype(np.int8)
        if to == "int8":
            return whole.view(np.uint8)
        nibbles = whole.view(np.uint8) & 15
        return nibbles[..., 0::2] | nibbles[..., 1::2] << 4
    nan = (bits_of(x) >> 24 & 0x80 | 0x7F).astype(np.uint8)
    finite = np.clip(x, F32(-MOST[to]), F32(MOST[to]))
    with np.errstate(invalid="ignore"):
        return np.where(np.isnan(x), nan, finite.astype(QUANTISED[to]).view(np.uint8))


def decode(raw: Any, dtype: str) -> Any:
    """The bytes of a format, exactly, as float32."""
    raw = np.ascontiguousarray(raw)
    if dtype in FLOATS:
        return widen(raw.view(FLOATS[dtype]))
    if dtype == "int4":
        pairs = np.stack([raw & 15, raw >> 4], axis=-1).reshape(*raw.shape[:-1], -1)
        return ((pairs ^ 8).astype(np.int8) - 8).astype(F32)
    with np.errstate(invalid="ignore"):
        return raw.view(QUANTISED[dtype]).astype(F32)


def scale_of(x: Any, to: str) -> Any:
    """amax / most over the finite elements of the last axis."""
    amax = np.where(np.isfinite(x), np.abs(x), F32(0)).max(axis=-1)
    return np.where(amax == 0, F32(1), np.maximum(amax / F32(MOST[to]), TINY)).astype(F32)


def quantise(x: Any, to: str, scale: Any) -> Any:
    """The bytes of x / scale, where scale has a last axis of 1 or as many as x."""
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        return encode((x * (F32(1) / np.asarray(scale, F32))).astype(F32), to)


def dequantise(raw: Any, dtype: str, scale: Any, to: str) -> Any:
    """The bytes of element * scale, in the float format `to`."""
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        return encode((decode(raw, dtype) * np.asarray(scale, F32)).astype(F32), to)


# ---- inputs ------------------------------------------------------------------------


def _neighbours(x: Any) -> Any:
    """Each finite number, and the float32 just below and above it."""
    return np.concatenate([x, np.nextafter(x, F32(-np.inf)), np.nextafter(x, F32(np.inf))])


def _ties(values: Any) -> Any:
    """Every number of a format, the middle to the next one, and their neighbours."""
    values = np.unique(values[np.isfinite(values)].astype(np.float64))
    return _neighbours(np.concatenate([values, (values[:-1] + values[1:]) / 2]).astype(F32))


def inputs(dtype: str) -> Any:
    """All numbers of a 16-bit format; of float32 every edge of the formats and random bits."""
    if dtype != "float32":
        return np.arange(2**16, dtype=np.uint16).view(FLOATS[dtype])
    upper = np.arange(2**16, dtype=np.uint32) << 16  # of bfloat16: all numbers and all ties
    bits = [upper | low for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)]
    bits.append(np.random.default_rng(0).integers(0, 2**32, 2**18, np.uint32))
    bytes_ = np.arange(256, dtype=np.uint8)
    edges = [_ties(np.arange(2**16, dtype=np.uint16).view(np.float16))]
    edges += [_ties(bytes_.view(QUANTISED[name])) for name in ("float8_e4m3fn", "float8_e5m2")]
    edges.append(_ties(np.arange(-200, 201)))
    # Beyond the largest numbers, where a format's next one would have been.
    edges.append(_neighbours(np.array([s * v for s in (1, -1) for v in (
        448, 464, 480, 57344, 61440, 65504, 65520, 65536, 3.3895314e38, 3.3961775e38)], F32)))
    return np.concatenate([np.concatenate(bits).view(F32), *edges]).astype(F32)


def normal_rows(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Any:
    """Rows as a model has them, with zeros, infinities, NaNs and far magnitudes here and there."""
    x = rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 4, (*shape[:-1], 1))
    x = np.where(rng.random(shape) < 0.02, 0, x)
    for special in (np.inf, -np.inf, np.nan, -np.nan, 1e30, 1e-40):
        x = np.where(rng.random(shape) < 0.004, special, x)
    x = np.where(rng.random((*shape[:-1], 1)) < 0.05, 0, x)  # whole vectors without a magnitude
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        return x.astype(F32).astype(FLOATS[dtype])
