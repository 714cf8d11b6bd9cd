"""Replays that reuse pages or put requests back: reuse.py PROGRAM [unittest options].

How many prompt tokens are found again is compared with a model of the schedule that knows
requests by their hash ids and pages by all ids in front of their end.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

DATA = Path(__file__).resolve().parents[1] / "data"
SMALL = ("replay", "--num-kv-heads", 1, "--head-dim", 8, "--threads", 1, "--quiet", "--json",
         "-")
MOONCAKE, BAILIAN = DATA / "mooncake_small.jsonl", DATA / "bailian_small.jsonl"
AGENTIC, BURSTGPT = DATA / "agentic_small.json", DATA / "burstgpt_small.csv"
CHECKS = ("mismatched_tokens", "poison_errors", "plan_errors", "pages_leaked", "cow_pages")

program = ""


def run(*arguments):
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True,
                          timeout=300, check=False)


def requests_of(trace):
    with open(trace, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def least_pages(trace):
    """Pages of 16 tokens that its longest request needs."""
    least = 1
    while (got := run("replay", trace, "--num-pages", least, "--quiet")).returncode == 3:
        least = int(got.stderr.split(" needs ")[1].split()[0])
    return least


def write_conversations(path, seed):
    """A Mooncake trace in which prompts go on from each other, end inside a block or start anew."""
    rng = random.Random(seed)
    chains = [[]]
    with open(path, "w", encoding="utf-8") as out:
        for i in range(30):
            chain = rng.choice(chains)[:rng.randint(0, 4)]
            chain = chain + [1000 * i + k for k in range(rng.randint(0 if chain else 1, 2))]
            chains.append(chain)
            print(json.dumps({"timestamp": 10 * i,
                              "input_length": 512 * len(chain) - rng.choice((0, 1, 100, 511)),
                              "output_length": rng.randint(0, 40), "hash_ids": chain}), file=out)


def page_keys(number, request, block, page_size):
    """For each full page of prompt + output - 1 tokens: what its content follows from."""
    ids, prompt = request["hash_ids"], request["input_length"]
    total = max(prompt, prompt + request["output_length"] - 1)
    keys = []
    for end in range(page_size, total + 1, page_size):
        covered = min(prompt, len(ids) * block)
        n_blocks = -(-end // block)
        # Tokens behind the last id are the request's own.
        keys.append((end, tuple(ids[:n_blocks])) if end <= covered else (end, number))
    return keys


class Model:
    """The schedule of docs/replay.md with a pool that never runs out."""

    def __init__(self, trace, block, page_size, budget, max_reqs):
        self.requests = requests_of(trace)
        self.keys = [page_keys(i, r, block, page_size)
                     for i, r in enumerate(self.requests)]
        self.page_size, self.budget, self.max_reqs = page_size, budget, max_reqs
        self.known, self.computed, self.running = set(), {}, []
        self.next = self.steps = self.hits = self.written = 0

    def total(self, i):
        r = self.requests[i]
        return max(r["input_length"], r["input_length"] + r["output_length"] - 1)

    def find(self, i):
        most = (self.requests[i]["input_length"] - 1) // self.page_size
        n = 0
        while n < most and self.keys[i][n] in self.known:
            n += 1
        return n * self.page_size

    def step(self):
        left, now, prefill = self.budget, {}, None
        for i in self.running:
            if self.computed[i] < self.requests[i]["input_length"]:
                prefill = i
            elif left > 0:
                now[i], left = 1, left - 1
        while prefill is not None or (left > 0 and len(self.running) < self.max_reqs and
                                      self.next < len(self.requests)):
            if prefill is None:
                prefill, self.next = self.next, self.next + 1
                self.computed[prefill] = self.find(prefill)
                self.hits += self.computed[prefill]
                self.running.append(prefill)
            rest = self.requests[prefill]["input_length"] - self.computed[prefill]
            now[prefill] = min(rest, left)
            left -= now[prefill]
            if now[prefill] < rest:
                break
            prefill = None
        for i, n in now.items():
            self.computed[i] += n
            self.written += n
            self.known.update(self.keys[i][:self.computed[i] // self.page_size])
        self.running = [i for i in self.running if self.computed[i] < self.total(i)]
        self.steps += 1

    def run(self):
        while self.running or self.next < len(self.requests):
            self.step()
        return self


class Reuse(unittest.TestCase):
    def replay(self, *arguments):
        got = run(*SMALL, *arguments)
        self.assertEqual((got.returncode, got.stderr), (0, ""), arguments)
        report = json.loads(got.stdout)
        with self.subTest(arguments=arguments):
            self.assertEqual({name: report[name] for name in CHECKS}, dict.fromkeys(CHECKS, 0))
            self.assertEqual(report["requests_finished"], report["requests"])
            self.assertGreaterEqual(report["prefix_hit_tokens"], 0)
        return report

    def test_hits_are_the_models(self):
        """Every shape of pages beside blocks: smaller, larger, and ends that do not meet."""
        with tempfile.TemporaryDirectory() as folder:
            traces = [(BAILIAN, 16)]
            for seed in (1, 2):
                traces.append((Path(folder) / f"{seed}.jsonl", 512))
                write_conversations(traces[-1][0], seed)
            for trace, block in traces:
                hits = 0
                for page_size in (1, 7, 16, 33, 512, 600):
                    for budget, max_reqs in ((8192, 256), (64, 4), (700, 1)):
                        hits += self.check_hits(trace, block, page_size, budget, max_reqs)
                self.assertGreater(hits, 0, trace.name)

    def check_hits(self, trace, block, page_size, budget, max_reqs):
        model = Model(trace, block, page_size, budget, max_reqs).run()
        report = self.replay(trace, "--page-size", page_size, "--prefix-cache", "on",
                             "--max-num-batched-tokens", budget, "--max-num-reqs", max_reqs,
                             "--num-pages", 40000 // page_size + 64)
        with self.subTest(trace=trace.name, page_size=page_size, budget=budget):
            self.assertEqual(
                (report["steps"], report["prefix_hit_tokens"], report["tokens_written"]),
                (model.steps, model.hits, model.written))
            self.assertEqual(report["verified_tokens"],
                             report["tokens_written"] + report["prefix_hit_tokens"])
        return model.hits

    def test_nothing_is_shared_without_ids(self):
        for trace in (DATA / "azure_small.csv", BURSTGPT):
            report = self.replay(trace, "--prefix-cache", "on", "--num-pages", 4096)
            self.assertEqual(report["prefix_hit_tokens"], 0)
            self.assertGreater(report["pages_cached"], 0)

    def test_off_is_off(self):
        report = self.replay(MOONCAKE, "--num-pages", 4096)
        self.assertEqual((report["prefix_hit_tokens"], report["pages_cached"],
                          report["evictions"]), (0, 0, 0))

    def test_small_pools_evict(self):
        """As few pages as the longest request needs: all is right, and pages are evicted."""
        for trace in (MOONCAKE, BAILIAN, AGENTIC):
            whole = self.replay(trace, "--prefix-cache", "on", "--num-pages", 4096)
            for allocator in ("extent", "lifo", "fifo"):
                for preempt in ("refuse", "recompute"):
                    report = self.replay(trace, "--prefix-cache", "on", "--allocator", allocator,
                                         "--preempt", preempt, "--num-pages",
                                         max(least_pages(trace), whole["pages_cached"] // 3))
                    self.assertGreater(report["evictions"], 0, (trace.name, allocator, preempt))
                    self.assertEqual(report["verified_tokens"], whole["verified_tokens"])

    def test_put_back(self):
        """Crowded pools: the same tokens in the end, some of them written again."""
        for prefix_cache in ("off", "on"):
            options = ("--max-requests", 60, "--max-num-reqs", 32, "--prefix-cache", prefix_cache)
            refuse = self.replay(*options, "--num-pages", 700)
            report = self.replay(*options, "--num-pages", 700, "--preempt", "recompute")
            self.assertEqual((refuse["preemptions"], refuse["recomputed_tokens"]), (0, 0))
            self.assertGreater(report["preemptions"], 0)
            self.assertGreater(report["recomputed_tokens"], 0)
            for name in ("tokens_written", "prompt_tokens", "verified_tokens"):
                self.assertEqual(report[name], refuse[name], name)
            row_bytes = refuse["bytes_written"] // refuse["tokens_written"]
            self.assertEqual(report["bytes_written"],
                             (report["tokens_written"] + report["recomputed_tokens"]) * row_bytes)

    def test_put_back_finds_its_own_pages(self):
        """What is put back is found again, so less is written twice."""
        options = ("--max-requests", 60, "--max-num-reqs", 32, "--num-pages", 700, "--preempt",
                   "recompute")
        again = {on: self.replay(*options, "--prefix-cache", on)["recomputed_tokens"]
                 for on in ("off", "on")}
        self.assertLess(again["on"], again["off"])

    def test_room_for_all_puts_nobody_back(self):
        refuse, recompute = (
            self.replay("--max-requests", 20, "--num-pages", 8192, "--preempt", how)
            for how in ("refuse", "recompute"))
        self.assertEqual(recompute["preemptions"], 0)
        for name in ("steps", "tokens_written", "slices_exact", "verified_tokens"):
            self.assertEqual(recompute[name], refuse[name], name)
        self.assertLessEqual(recompute["pages_peak"], refuse["pages_peak"])

    def test_layers_and_arrivals(self):
        self.replay(BAILIAN, "--prefix-cache", "on", "--num-layers", 3, "--arrivals", "trace",
                    "--preempt", "recompute", "--num-pages", 2048)

    def test_words(self):
        for options, pattern in (
                (("--prefix-cache", "nonsense"), '--prefix-cache "nonsense": not off or on'),
                (("--preempt", "nonsense"), '--preempt "nonsense": not refuse or recompute')):
            got = run("replay", MOONCAKE, *options)
            self.assertEqual((got.returncode, got.stdout, got.stderr),
                             (2, "", f"pagedkv: {pattern}\n"))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: reuse.py PROGRAM [unittest options]")
    program = os.path.abspath(sys.argv[1])
    unittest.main(argv=[sys.argv[0], *sys.argv[2:]])
