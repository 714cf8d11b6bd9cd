"""Compiles the TPU kernel with the real TPU compiler, on a machine without a TPU.

    TPU_LIBRARY_PATH=/path/to/libtpu.so python tpu_aot.py [CASE...]

Prints one JSON object, name of a case -> what the compiled program shows.
Runs nothing: there is no device, so it proves no value and no speed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
import time
from typing import Any, Callable, Optional

# Before jax: libtpu reads them when it is loaded.
os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # no metadata server outside Google Cloud
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # no lock file: tests run side by side
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
from jax import lax
from jax.experimental import topologies
from jax.experimental.layout import Format, Layout
import jax.numpy as jnp
import numpy as np

from pagedkv import tpu

CHIPS = {"v5e": "v5e:1x1", "v6e": "v6e:1x1"}
NEW_TOKENS, COLUMNS, PAGES, LAYERS = 512, 256, 64, 4


@dataclasses.dataclass(frozen=True)
class Case:
    """One program: the update, or `wrap` around it, for caches of [PAGES * page_size, C, D]."""

    dtype: Any
    heads: int
    head_dim: int
    page_size: int
    new_head_dim: Optional[int] = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    row_major: bool = False  # give the cache that layout, and say so
    says_row_major: bool = False  # say so, and do not
    wrap: str = "update"
    chips: int = 1
    x64: bool = False
    columns: int = COLUMNS


def _cases() -> dict[str, Case]:
    cases = {
        f"{jnp.dtype(dtype).name}-C{heads}-D{head_dim}-S{page_size}":
            Case(dtype, heads, head_dim, page_size)
        for dtype, heads, head_dim, page_size in (
            (jnp.bfloat16, 16, 128, 16),
            (jnp.bfloat16, 16, 128, 64),
            (jnp.bfloat16, 16, 128, 256),
            (jnp.bfloat16, 16, 256, 64),
            (jnp.bfloat16, 2, 128, 33),
            (jnp.bfloat16, 4, 128, 128),
            (jnp.float32, 2, 128, 32),
            (jnp.float32, 16, 256, 64),
            (jnp.float8_e4m3fn, 16, 128, 64),
            (jnp.float8_e5m2, 4, 128, 64),
            (jnp.int8, 16, 128, 64),
            (jnp.uint8, 8, 128, 64),
            (jnp.int16, 16, 128, 64),
            (jnp.uint16, 16, 128, 64),
            (jnp.int32, 8, 128, 64),
            (jnp.uint32, 8, 128, 64),
        )
    }
    bf16 = jnp.bfloat16
    cases["head_dim 64 in a cache of 128"] = Case(bf16, 16, 128, 64, new_head_dim=64)
    cases["head_dim 64, row-major"] = Case(bf16, 16, 64, 64, row_major=True)
    cases["head_dim 80, row-major"] = Case(bf16, 16, 80, 64, row_major=True)
    cases["fp8 C2, row-major"] = Case(jnp.float8_e4m3fn, 2, 128, 64, row_major=True)
    cases["int8 C6 D192, row-major"] = Case(jnp.int8, 6, 192, 64, row_major=True)
    cases["fp8 C2, said row-major but is not"] = Case(
        jnp.float8_e4m3fn, 2, 128, 64, says_row_major=True)
    cases["head_dim 64, said row-major but is not"] = Case(bf16, 16, 64, 64, says_row_major=True)
    cases["4 slices in flight"] = Case(bf16, 16, 128, 64, options={"num_slices_per_block": 4})
    cases["rows of 4 pages"] = Case(bf16, 16, 128, 64, options={"max_slice_tokens": 256})
    # A token takes 8 KiB, of which 3840 bytes are data: 32 * 160 tokens are 40 MiB.
    cases["scratch as large as the limit"] = Case(bf16, 10, 192, 64, row_major=True, options={
        "max_slice_tokens": 160, "num_slices_per_block": 32})
    cases["many columns"] = Case(bf16, 16, 128, 16, columns=32768)
    cases["64-bit mode"] = Case(bf16, 16, 128, 64, x64=True)
    cases["scan over layers"] = Case(bf16, 16, 128, 64, wrap="scan")
    cases["4 chips by head"] = Case(bf16, 16, 128, 64, wrap="shard_map", chips=4)
    return cases


CASES = _cases()


def _update(case: Case) -> Callable[..., jax.Array]:
    def update(new_kv, slices, kv_cache, count):
        return tpu.kv_cache_update(
            new_kv, slices, kv_cache, count, page_size=case.page_size,
            row_major=case.row_major or case.says_row_major, **case.options)

    def scan(new_kv, slices, kv_cache, count):
        """A stand-in for a model: each of the layers writes, one cache is carried."""
        def layer(cache, index):
            return update(new_kv + index.astype(new_kv.dtype), slices, cache, count), None
        return lax.scan(layer, kv_cache, jnp.arange(LAYERS, dtype=jnp.int32))[0]

    return scan if case.wrap == "scan" else update


def compile_case(case: Case, chip: str) -> dict[str, Any]:
    """Compiles a case for one of CHIPS; returns what its HLO and memory analysis say."""
    mesh = _mesh(chip, case.chips)
    spec = jax.P(None, "x", None) if case.chips > 1 else jax.P()
    function = _update(case)
    if case.chips > 1:
        function = jax.shard_map(
            function, mesh=mesh, in_specs=(spec, jax.P(), spec, jax.P()), out_specs=spec,
            check_vma=False)
    whole, split = (jax.sharding.NamedSharding(mesh, s) for s in (jax.P(), spec))
    cache_format = Format(Layout(major_to_minor=(0, 1, 2)), split) if case.row_major else split
    shape = (PAGES * case.page_size, case.heads, case.head_dim)
    new_shape = (NEW_TOKENS, case.heads, case.new_head_dim or case.head_dim)
    jitted = jax.jit(
        function, donate_argnums=2, out_shardings=cache_format,
        in_shardings=(split, whole, cache_format, whole))
    began = time.perf_counter()
    with jax.enable_x64(case.x64):
        program = jitted.lower(
            jax.ShapeDtypeStruct(new_shape, case.dtype),
            jax.ShapeDtypeStruct((3, case.columns), jnp.int32),
            jax.ShapeDtypeStruct(shape, case.dtype),
            jax.ShapeDtypeStruct((1,), jnp.int32),
        ).compile()
    seconds = time.perf_counter() - began
    local = (shape[0], shape[1] // case.chips, shape[2])
    return _facts(program, local, case) | {"seconds": round(seconds, 2)}


def _mesh(chip: str, chips: int) -> jax.sharding.Mesh:
    name, bounds = (CHIPS[chip], (1, 1, 1)) if chips == 1 else (f"{chip}:2x2", (2, 2, 1))
    topology = topologies.get_topology_desc(
        platform="tpu", topology_name=name, chip_config_name="default",
        chips_per_host_bounds=bounds, num_slices=1)
    return jax.sharding.Mesh(np.array(topology.devices).reshape(chips), ("x",))


def _facts(program: Any, shape: tuple[int, ...], case: Case) -> dict[str, Any]:
    """`shape`: the cache on one chip."""
    text = program.as_text()
    memory = program.memory_analysis()
    makers = _opcodes_that_make(text, shape)
    return {
        "kernels": text.count('custom_call_target="tpu_custom_call"'),
        "kernel_alias": bool(re.search(r"output_to_operand_aliasing=\{\{\}: \(4, \{\}\)\}", text)),
        "program_alias": bool(re.search(r"input_output_alias=\{ \{\}: \(2, \{\}", text)),
        "alias_bytes": memory.alias_size_in_bytes,
        "cache_bytes": _tiled_bytes(shape, case.dtype),
        "temp_bytes": memory.temp_size_in_bytes,
        # Whatever makes an array of the cache's shape beside the kernel is a copy.
        "copies": sorted(set(makers) - {
            "parameter", "custom-call", "while", "tuple", "get-tuple-element", "bitcast"}),
    }


def _opcodes_that_make(hlo: str, shape: tuple[int, ...]) -> list[str]:
    """The opcodes of all instructions whose result holds an array of that shape."""
    dimensions = "[" + ",".join(map(str, shape)) + "]"
    found = []
    for line in hlo.splitlines():
        match = re.match(r"\s*(?:ROOT )?%\S+ = (.*?) ([a-z][a-z-]*)\(", line)
        if match and dimensions in match[1]:
            found.append(match[2])
    return found


def _tiled_bytes(shape: tuple[int, ...], dtype: Any) -> int:
    heads = tpu.padded_num_combined_heads(shape[1], dtype)
    return shape[0] * heads * tpu.padded_head_dim(shape[2]) * jnp.dtype(dtype).itemsize


def _default_order(dtype: Any, heads: int, head_dim: int) -> bool:
    """Whether the compiler keeps a cache in row-major order by itself: no copy is made."""
    case = Case(dtype, heads, head_dim, 8, says_row_major=True, columns=16)
    return not compile_case(case, "v6e")["copies"]


def layout_rule() -> dict[str, Any]:
    """Compares `fills_tiles` with the compiler; returns where they differ."""
    shapes = [(heads, 128) for heads in (1, 2, 3, 4, 6, 8, 12, 16, 24)] + [(4, 64), (8, 192)]
    tried = [
        (dtype, heads, head_dim)
        for dtype in (jnp.int8, jnp.bfloat16, jnp.float32) for heads, head_dim in shapes
    ]
    wrong = [
        f"{jnp.dtype(case[0]).name}-C{case[1]}-D{case[2]}" for case in tried
        if _default_order(*case) != tpu.fills_tiles(case[1], case[2], case[0])
    ]
    return {"tried": len(tried), "wrong": wrong}


def main(names: list[str]) -> int:
    wanted = names or [*CASES, "layout rule"]
    began = time.perf_counter()
    report: dict[str, Any] = {}
    for name in wanted:
        if name == "layout rule":
            report[name] = layout_rule()
            continue
        for chip in CHIPS:
            report[f"{chip} {name}"] = compile_case(CASES[name], chip)
    report["seconds"] = round(time.perf_counter() - began, 1)
    json.dump(report, sys.stdout, indent=1)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
