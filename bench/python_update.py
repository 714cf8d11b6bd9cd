"""The Python calls beside what one writes without them.

    python bench/python_update.py [--seconds 60] [--json FILE]

Three tables. Calls: one token into a small cache, so that what is left is the call's own cost.
JAX: one token under jit with donation, by size of the cache: a copy of it would show.
Rows: 256 and 8192 tokens of 4 KiB into scattered slots of a cache of 1 GiB, which is larger than
a processor's cache: pagedkv, PyTorch's ``index_copy_``, NumPy's fancy indexing, and JAX's
``.at[].set`` under jit with donation (in bfloat16 XLA widens the whole cache on CPUs, so float32
rows of as many bytes stand beside it). Contenders take turns in shuffled
rounds; a ratio is the median over the rounds of (contender's time / pagedkv's time).

JAX's own threads are set before it starts, so every thread count is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

HEADS, DIM, CACHE_TOKENS = 16, 128, 1 << 18
Run = Callable[[], Any]


def timed(run: Run, repeat: int = 1) -> float:
    start = time.perf_counter_ns()
    for _ in range(repeat):
        run()
    return (time.perf_counter_ns() - start) / repeat


def rounds(contenders: dict[str, Run], before: Run, seconds: float) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in contenders}
    end = time.monotonic() + seconds
    for run in contenders.values():
        before()
        run()
    while time.monotonic() < end or len(times[min(times)]) < 5:
        for name in random.sample(list(contenders), len(contenders)):
            before()
            times[name].append(timed(contenders[name]))
    return times


def call_rows() -> list[dict[str, Any]]:
    """ns of a whole call that writes one token of 256 bytes, by contender."""
    import numpy as np
    import torch

    import pagedkv
    import pagedkv.torch

    cache = np.zeros((512, 2, 64), np.float16)
    row = np.ones((1, 2, 64), np.float16)
    slices, n = np.array([[3], [0], [1]], np.int32), np.ones(1, np.int32)
    tensors = [torch.from_numpy(a) for a in (cache, row, slices, n)]
    operator = torch.ops.pagedkv.kv_cache_update_
    calls = {
        "numpy, n an int": lambda: pagedkv.kv_cache_update(row, slices, cache, 1, page_size=16),
        "numpy, n an array": lambda: pagedkv.kv_cache_update(row, slices, cache, n, page_size=16),
        "torch.ops.pagedkv.kv_cache_update_": lambda: operator(*tensors, 16, 8),
    }
    return [{"call": name, "ns": min(timed(run, 5000) for _ in range(15))}
            for name, run in calls.items()]


class Step:
    """Scattered slots that change from call to call, so that none is warm."""

    def __init__(self, tokens: int) -> None:
        import numpy as np

        self.order = np.random.default_rng(1).permutation(CACHE_TOKENS).astype(np.int32)
        self.tokens, self.at = tokens, 0
        self.slices = np.zeros((3, tokens), np.int32)
        self.slices[1] = np.arange(tokens)
        self.slices[2] = 1
        self.next()

    def next(self) -> None:
        if self.at + self.tokens > CACHE_TOKENS:
            self.at = 0
        self.slots = self.order[self.at:self.at + self.tokens].copy()
        self.slots_int64 = self.slots.astype("int64")  # what index_copy_ takes
        self.slices[0] = self.slots
        self.at += self.tokens


def host_contenders(step: Step) -> dict[str, Run]:
    import numpy as np
    import torch

    import pagedkv

    cache = torch.zeros(CACHE_TOKENS, HEADS, DIM, dtype=torch.bfloat16)
    new = torch.randn(step.tokens, HEADS, DIM).to(torch.bfloat16)
    cache_np, new_np = cache.view(torch.int16).numpy(), new.view(torch.int16).numpy()

    def numpy_set() -> None:
        cache_np[step.slots] = new_np

    def index_copy() -> None:
        cache.index_copy_(0, torch.from_numpy(step.slots_int64), new)

    return {
        "pagedkv": lambda: pagedkv.kv_cache_update(new, step.slices, cache, step.tokens,
                                                   page_size=16),
        "index_copy_": index_copy,
        "numpy": numpy_set,
    }


def jax_contenders(step: Step, dtype: str) -> dict[str, Run]:
    import jax
    import jax.numpy as jnp
    import numpy as np

    import pagedkv.jax

    dim = DIM * 2 // jnp.dtype(dtype).itemsize  # rows of 4 KiB
    caches = {name: jnp.zeros((CACHE_TOKENS, HEADS, dim), dtype)
              for name in ("pagedkv", ".at[].set")}
    new = jax.random.normal(jax.random.key(0), (step.tokens, HEADS, dim)).astype(dtype)
    n = np.array([step.tokens], np.int32)
    at_set = jax.jit(lambda cache, slots: cache.at[slots].set(new, unique_indices=True),
                     donate_argnums=0)

    def run_pagedkv() -> None:
        caches["pagedkv"] = pagedkv.jax.kv_cache_update(new, step.slices, caches["pagedkv"], n,
                                                        page_size=16)
        caches["pagedkv"].block_until_ready()

    def run_at_set() -> None:
        caches[".at[].set"] = at_set(caches[".at[].set"], step.slots)
        caches[".at[].set"].block_until_ready()

    return {"pagedkv": run_pagedkv, ".at[].set": run_at_set}


def copy_rows(framework: str, threads: int, seconds: float) -> list[dict[str, Any]]:
    import pagedkv

    pagedkv.set_num_threads(threads)
    if framework == "host":
        import torch

        torch.set_num_threads(threads)
    result = []
    dtypes = ("bfloat16",) if framework == "host" else ("float32", "bfloat16")
    for tokens, dtype in ((t, d) for t in (256, 8192) for d in dtypes):
        step = Step(tokens)
        made = host_contenders(step) if framework == "host" else jax_contenders(step, dtype)
        times = rounds(made, step.next, seconds / 2 / len(dtypes))
        ours = times["pagedkv"]
        for name, ns in times.items():
            result.append({
                "framework": "numpy, torch" if framework == "host" else "jax", "impl": name,
                "dtype": dtype, "tokens": tokens, "threads": threads,
                "us": statistics.median(ns) / 1e3,
                "ratio": statistics.median(a / b for a, b in zip(ns, ours, strict=True)),
                "rounds": len(ns)})
    return result


def jax_step_rows(seconds: float) -> list[dict[str, Any]]:
    """One token under jit with donation, by size of the cache: a copy would show."""
    import jax.numpy as jnp
    import numpy as np

    import pagedkv.jax

    result = []
    for mebibytes in (64, 4096):
        cache = jnp.zeros((mebibytes * 256, HEADS, DIM), jnp.bfloat16)
        new = jnp.ones((1, HEADS, DIM), jnp.bfloat16)
        slices, n = np.array([[77], [0], [1]], np.int32), np.ones(1, np.int32)
        ns = []
        end = time.monotonic() + seconds / 2
        while time.monotonic() < end or len(ns) < 20:
            start = time.perf_counter_ns()
            cache = pagedkv.jax.kv_cache_update(new, slices, cache, n).block_until_ready()
            ns.append(time.perf_counter_ns() - start)
        result.append({"cache_mib": mebibytes, "us": statistics.median(ns) / 1e3})
        del cache
    return result


def part(arguments: list[str], threads: int) -> list[dict[str, Any]]:
    flags = f"--xla_cpu_multi_thread_eigen={'true' if threads > 1 else 'false'}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": str(threads),
                   "XLA_FLAGS": flags}
    pin = ["taskset", "-c", "0"] if threads == 1 else []
    done = subprocess.run([*pin, sys.executable, __file__, *arguments], env=environment,
                          check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def show(results: dict[str, list[dict[str, Any]]]) -> None:
    for title, table in results.items():
        print(f"\n{title}\n")
        heads = list(table[0])
        print("|", " | ".join(heads), "|")
        print("|", " | ".join("---" for _ in heads), "|")
        for row in table:
            cells = (f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values())
            print("|", " | ".join(cells), "|")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60, help="about how long (60)")
    parser.add_argument("--json", help="also write the rows to this file")
    parser.add_argument("--part", nargs=2, metavar=("NAME", "THREADS"), help=argparse.SUPPRESS)
    o = parser.parse_args()
    if o.part is not None:
        name, threads = o.part[0], int(o.part[1])
        rows = {"calls": call_rows, "jax_step": lambda: jax_step_rows(o.seconds)}
        found = rows[name]() if name in rows else copy_rows(name, threads, o.seconds)
        json.dump(found, sys.stdout)
        return 0
    share = str(o.seconds / 6)
    results = {"calls": part(["--part", "calls", "1"], 1),
               "jax_step": part(["--seconds", share, "--part", "jax_step", "2"], 2),
               "rows": []}
    for threads in sorted({1, min(2, os.cpu_count() or 1)}):
        for framework in ("host", "jax"):
            results["rows"] += part(["--seconds", share, "--part", framework, str(threads)],
                                    threads)
    show(results)
    if o.json is not None:
        with open(o.json, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
