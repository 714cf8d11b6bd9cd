"""Tokens per second of transformers' continuous batching, with its cache written by pagedkv.

    python bench/transformers_paired.py [--pairs 24] [--threads 1] [--dtype float32] [--device cpu]
        [--json FILE]
    python bench/transformers_paired.py --writes [--seconds 10] ...

Models are built from a config with seeded weights. Every round runs the same requests once in
each arm, in shuffled order, by one engine with one cache:

    engine      transformers as it is
    again       the same once more: what its ratio to `engine` shows is noise
    pagedkv     under pagedkv.integrations.transformers
    removed     under the same hook, writing nothing: its tokens are wrong, its rate is the ceiling

A rate is the tokens that a run generates divided by the time from the moment the engine
may begin to the last result. A ratio is the median over the rounds of (an arm's rate / engine's
rate of that round), with a bootstrap 95% interval over rounds. `cpu` is the same with the process's
CPU time in place of the clock's: it suffers less from whatever else the machine does. An interval
that contains 1 shows no gain and no loss.

Some rounds more are run with a clock around the write: the engine's two index_copy_ calls a layer,
or pagedkv's plan a group and call a layer. They are not part of the rates. On a GPU the clock waits
for the device before and after.

--writes measures the engine's cache alone instead: its `update` for 8 layers with nothing to read,
as often as fits in --seconds for each size, with and without the hook in shuffled rounds. Nothing
else runs between the calls, so code is warm: a bound of what the write can gain, not an engine.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import transformers
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching import cache_allocators

import pagedkv
from pagedkv.integrations import transformers as hook

VOCABULARY, WINDOW, BUDGET = 1024, 128, 256
SHAPE = {"vocab_size": VOCABULARY, "hidden_size": 384, "intermediate_size": 768,
         "num_hidden_layers": 6, "num_attention_heads": 6, "num_key_value_heads": 3,
         "max_position_embeddings": 2048, "initializer_range": 0.2}


def llama() -> Any:
    return transformers.LlamaForCausalLM, transformers.LlamaConfig(**SHAPE)


def qwen3() -> Any:
    return transformers.Qwen3ForCausalLM, transformers.Qwen3Config(
        **SHAPE, head_dim=64, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=3)


MODELS = {"Llama": llama, "Qwen3, 3 of 6 layers with a window of 128": qwen3}
# name: prompt lengths, new tokens
WORKLOADS = {"decode": ([16 + 2 * i for i in range(16)], 32), "prefill": ([300, 280, 260, 200], 4)}


def now_ns() -> int:
    """When what was asked of a device is done."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter_ns()


class Removed(hook.Group):
    """No plan and no write."""

    def begin_step(self, write_index: torch.Tensor) -> None:
        self.index, self.planned = write_index, ()

    def write(self, layer: Any, key: torch.Tensor, value: torch.Tensor) -> None:
        pass


class TimedEngine(Removed):
    """What the engine does itself, under the clock."""

    ns = 0

    def write(self, layer: Any, key: torch.Tensor, value: torch.Tensor) -> None:
        start = now_ns()
        layer.rows[0].index_copy_(0, self.index, key)
        layer.rows[1].index_copy_(0, self.index, value)
        TimedEngine.ns += now_ns() - start


class TimedPagedkv(hook.Group):
    ns = 0
    plan_ns = 0

    def begin_step(self, write_index: torch.Tensor) -> None:
        start = now_ns()
        super().begin_step(write_index)
        spent = now_ns() - start
        TimedPagedkv.ns += spent
        TimedPagedkv.plan_ns += spent

    def write(self, layer: Any, key: torch.Tensor, value: torch.Tensor) -> None:
        start = now_ns()
        super().write(layer, key, value)
        TimedPagedkv.ns += now_ns() - start


ARMS: dict[str, Callable[[], Any]] = {
    "engine": nullcontext,
    "again": nullcontext,
    "pagedkv": hook.patched,
    "removed": lambda: hook._patched(hook._Hook(Removed)),
}
TIMED: dict[str, Any] = {"engine": TimedEngine, "pagedkv": TimedPagedkv}


class Run:
    """One model, one workload, one cache."""

    def __init__(self, build: Callable[[], Any], lengths: list[int], new_tokens: int,
                 dtype: torch.dtype, device: str):
        torch.manual_seed(0)
        family, config = build()
        self.model = family._from_config(config, attn_implementation="sdpa")
        self.model.eval().to(device, dtype)
        rng = random.Random(1)
        self.requests = [[rng.randrange(VOCABULARY) for _ in range(n)] for n in lengths]
        self.new_tokens = new_tokens
        self.manager = self.model.init_continuous_batching(
            GenerationConfig(max_new_tokens=new_tokens, do_sample=False, eos_token_id=-1),
            # Sharing would find the pages of the run before; a graph, write as it was captured.
            ContinuousBatchingConfig(num_blocks=24, max_batch_tokens=BUDGET,
                                     allow_block_sharing=False, use_cuda_graph=False))
        self.manager.current_batch = 0  # a run may ask before the engine's thread says it
        self.manager.start()

    def once(self) -> tuple[float, float, list[list[int]], int]:
        """Seconds of the clock and of the CPU, tokens, steps."""
        manager = self.manager
        found: dict[str, list[int]] = {}
        steps = manager.current_batch
        with manager.pause():  # all requests are there before the first step: equal steps
            ids = manager.add_requests(self.requests)
            cpu, start = time.process_time(), time.perf_counter()
        while len(found) < len(ids):
            result = manager.get_result(timeout=1)
            if result is not None and result.is_finished():
                found[result.request_id] = list(result.generated_tokens)
            elif result is None and not manager.is_running():
                raise RuntimeError("the engine stopped")
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        with manager.pause():  # the last step is over, so the hook may change
            steps = manager.current_batch - steps
        tokens = [found[i] for i in ids]
        assert sum(map(len, tokens)) == len(self.requests) * self.new_tokens
        return seconds, cpu, tokens, steps


def interval(ratios: list[float]) -> dict[str, float]:
    """The median and its bootstrap interval."""
    rng = random.Random(2)
    medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(4000))
    return {"ratio": statistics.median(ratios), "low": medians[100], "high": medians[-101]}


def measure(build: Callable[[], Any], workload: str, o: argparse.Namespace) -> dict[str, Any]:
    lengths, new_tokens = WORKLOADS[workload]
    run = Run(build, lengths, new_tokens, getattr(torch, o.dtype), o.device)
    try:
        return compare(run, workload, o)
    finally:
        run.manager.stop(block=True)
        run.manager.destroy()


def compare(run: Run, workload: str, o: argparse.Namespace) -> dict[str, Any]:
    lengths, new_tokens = WORKLOADS[workload]
    want, steps = run.once()[2:]
    run.once()
    seconds: dict[str, list[float]] = {name: [] for name in ARMS}
    cpu: dict[str, list[float]] = {name: [] for name in ARMS}
    wrong = 0
    for _ in range(o.pairs):
        for name in random.sample(list(ARMS), len(ARMS)):
            with ARMS[name]():
                wall, busy, tokens, n = run.once()
            seconds[name].append(wall)
            cpu[name].append(busy)
            if n != steps or (name != "removed" and tokens != want):
                raise SystemExit(f"{name}: other tokens or steps than the engine alone")
            wrong += name == "removed" and tokens != want
    if wrong == 0:
        raise SystemExit("removed: the same tokens, so the comparison sees nothing")
    inside: dict[str, list[float]] = {"engine": [], "pagedkv": [], "pagedkv, plan": []}
    for _ in range(max(3, o.pairs // 4)):
        for name, group in TIMED.items():
            group.ns = TimedPagedkv.plan_ns = 0
            with hook._patched(hook._Hook(group)):
                run.once()
            inside[name].append(group.ns / steps)
            if name == "pagedkv":
                inside["pagedkv, plan"].append(TimedPagedkv.plan_ns / steps)
    made = len(lengths) * new_tokens
    step_ns = statistics.median(seconds["engine"]) / steps * 1e9
    result = {
        "workload": workload, "dtype": o.dtype, "device": o.device, "threads": o.threads,
        "pairs": o.pairs,
        "steps": steps, "prompt_tokens": sum(lengths), "new_tokens": made,
        "tokens_per_s": {n: made / statistics.median(s) for n, s in seconds.items()},
        "write_ns_per_step": {n: statistics.median(v) for n, v in inside.items()},
        "write_share_of_step": statistics.median(inside["engine"]) / step_ns,
    }
    for name in ("again", "pagedkv", "removed"):
        for kind, times in (("rate", seconds), ("cpu", cpu)):
            result[f"{name}_{kind}"] = interval(
                [a / b for a, b in zip(times["engine"], times[name], strict=True)])
    return result


def write_step(
    tokens: int, decode: bool, dtype: torch.dtype, device: str,
) -> Callable[[], None]:
    """The writes of a step of 8 layers with 8 KV heads of 128, by the engine's own allocator."""
    config = transformers.LlamaConfig(hidden_size=1024, num_attention_heads=8,
                                      num_key_value_heads=8, num_hidden_layers=8)
    layers, page, pages = 8, 16, 1024
    allocator = cache_allocators.FullAttentionCacheAllocator(
        0, config, 8, dtype, page, list(range(layers)), False)
    block = allocator.bytes_per_block
    memory = torch.zeros((pages + 2) * block, dtype=torch.uint8, device=device).fill_(1)
    allocator.register_cache_tensor(block, pages * block, memory,
                                    cache_allocators.CachePool(pages, 1))
    order = random.sample(range(2, pages + 2), pages)
    if decode:
        allocator.block_table = {str(i): [order[i]] for i in range(tokens)}
        index = [row for i in range(tokens) for row in allocator.get_write_indices(str(i), 5, 1)]
    else:
        allocator.block_table = {"0": order}
        index = allocator.get_write_indices("0", 3, tokens)
    write_index = torch.tensor(index, device=device)
    nothing = torch.zeros(0, dtype=torch.int64, device=device)
    rows = [torch.randn(1, tokens, 8, 128).to(device, dtype).squeeze(0) for _ in range(2)]

    def step() -> None:
        for layer in range(layers):
            allocator.update(*rows, layer, nothing, write_index)

    return step


def measure_writes(o: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for tokens, decode in ((1, True), (16, True), (256, True), (64, False), (512, False)):
        step = write_step(tokens, decode, getattr(torch, o.dtype), o.device)
        times: dict[str, list[float]] = {"engine": [], "pagedkv": []}
        end = time.monotonic() + o.seconds
        while time.monotonic() < end or len(times["engine"]) < 10:
            for name in random.sample(list(times), 2):
                with ARMS[name]():
                    step()
                    start = now_ns()
                    for _ in range(5):
                        step()
                    times[name].append((now_ns() - start) / 5e9)
        rows.append({
            "tokens": tokens, "pattern": "decode" if decode else "prefill", "dtype": o.dtype,
            "device": o.device, "threads": o.threads, "rounds": len(times["engine"]),
            "us": {n: statistics.median(t) * 1e6 for n, t in times.items()},
            "engine_over_pagedkv": interval(
                [a / b for a, b in zip(times["engine"], times["pagedkv"], strict=True)])})
    return rows


def show_writes(rows: list[dict[str, Any]]) -> None:
    print("\n| step | tokens | engine, us | pagedkv, us | engine / pagedkv |\n"
          "|---|---|---|---|---|")
    for row in rows:
        v = row["engine_over_pagedkv"]
        print(f"| {row['pattern']} | {row['tokens']} | {row['us']['engine']:.0f} "
              f"| {row['us']['pagedkv']:.0f} "
              f"| {v['ratio']:.2f} ({v['low']:.2f} to {v['high']:.2f}) |")


def show(rows: list[dict[str, Any]]) -> None:
    print("\n| model | workload | tokens/s, engine | pagedkv | pagedkv / engine | again / engine "
          "| removed / engine |\n|---|---|---|---|---|---|---|")

    def cell(v: dict[str, float]) -> str:
        return f"{v['ratio']:.3f} ({v['low']:.3f} to {v['high']:.3f})"

    for row in rows:
        rate = row["tokens_per_s"]
        for kind in ("rate", "cpu"):
            first = (f"{row['model']} | {row['workload']} | {rate['engine']:.0f} "
                     f"| {rate['pagedkv']:.0f}" if kind == "rate" else " | by CPU time | | ")
            print("|", first, "|", " | ".join(
                cell(row[f"{name}_{kind}"]) for name in ("pagedkv", "again", "removed")), "|")
    print("\n| model | workload | steps | step, us | write, engine, us | pagedkv, us "
          "| of it the plan, us | write's share, engine |\n|---|---|---|---|---|---|---|---|")
    for row in rows:
        ns = row["write_ns_per_step"]
        print(f"| {row['model']} | {row['workload']} | {row['steps']} "
              f"| {ns['engine'] / row['write_share_of_step'] / 1e3:.0f} "
              f"| {ns['engine'] / 1e3:.0f} | {ns['pagedkv'] / 1e3:.0f} "
              f"| {ns['pagedkv, plan'] / 1e3:.0f} | {100 * row['write_share_of_step']:.2f}% |")


def save(rows: list[dict[str, Any]], path: str | None) -> None:
    if path is not None:
        with open(path, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=24, help="rounds of all arms (24)")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch and pagedkv (1)")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu", help="cpu, or cuda: untried (cpu)")
    parser.add_argument("--writes", action="store_true", help="the engine's cache alone")
    parser.add_argument("--seconds", type=float, default=10, help="with --writes, a size (10)")
    parser.add_argument("--json", help="also write the rows to this file")
    o = parser.parse_args()
    if o.pairs < 2:
        parser.error("--pairs: 2 or more")
    torch.set_num_threads(o.threads)
    pagedkv.set_num_threads(o.threads)
    random.seed(4)
    gc.collect()
    gc.freeze()  # the engine collects garbage after every run
    rows = measure_writes(o) if o.writes else []
    save(rows, o.json)
    for name, build in () if o.writes else MODELS.items():
        for workload in WORKLOADS:
            rows.append({"model": name, "transformers": transformers.__version__,
                         "torch": torch.__version__, **measure(build, workload, o)})
            save(rows, o.json)  # what was measured outlives a run that is cut short
            print(f"{name}, {workload}: done", file=sys.stderr)
    (show_writes if o.writes else show)(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
