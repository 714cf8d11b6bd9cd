"""The program on a GPU that is none, the driver's library being tests/cuda/fake_driver.c:
cuda.py PLAIN FOLDER EMULATED [unittest options].

PLAIN is the program, FOLDER holds the driver's library, EMULATED is the program with device
code that this driver runs, and with fault_cuda.c between it and the library.  How long
anything took is no matter.
"""

import ctypes
import json
import os
import subprocess
import sys
import unittest
from pathlib import Path

DATA = Path(__file__).resolve().parents[1] / "data"
TRACE, PROMPTS = DATA / "azure_small.csv", DATA / "bailian_small.jsonl"
PAGE_SIZE, NUM_PAGES = 16, 64
SLOTS = PAGE_SIZE * NUM_PAGES
SMALL = ("--page-size", PAGE_SIZE, "--num-pages", NUM_PAGES, "--num-kv-heads", 2, "--head-dim", 16,
         "--max-num-batched-tokens", 64, "--max-num-reqs", 4, "--threads", 1, "--quiet")
TOKEN = (r"request \d+, token \d+, slot \d+, layer \d+, [KV] head \d+, byte \d+: "
         r"expected 0x\w\w, found 0x\w\w")
STRAY = (r"stray write: step \d+, page \d+, slot \d+, layer \d+, byte \d+: "
         r"expected 0xa5, found 0x\w\w")
# What no backend changes.
COUNTS = ("requests", "requests_finished", "steps", "tokens_written", "prompt_tokens",
          "slices_static", "slices_exact", "slices_merged", "bytes_written", "verified_tokens",
          "mismatched_tokens", "poison_errors", "plan_errors", "pages_peak", "pages_leaked",
          "pages_cached", "largest_extent_pages", "evictions", "cow_pages", "prefix_hit_tokens",
          "preemptions", "recomputed_tokens")
BENCH = ("bench", "--backend", "cuda", "--quick", "--rounds", 1, "--num-kv-heads", 2, "--head-dim",
         32, "--json", "-")

plain = folder = emulated = ""


def has_driver():
    """Is there one on this machine, which a run without ours would find?"""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def run(*arguments, program=None, driver=True, **more):
    environment = {name: value for name, value in os.environ.items()
                   if "FAULT" not in name and "PAGEDKV_FAKE" not in name}
    environment.pop("LD_LIBRARY_PATH", None)
    if driver:
        environment["LD_LIBRARY_PATH"] = folder
        environment["PAGEDKV_FAKE_CUDA_MEMORY"] = str(64 << 20)  # a small one is faster
    environment.update({name: str(value) for name, value in more.items()})
    return subprocess.run([program or emulated, *map(str, arguments)], env=environment,
                          capture_output=True, text=True, timeout=300, check=False)


class Case(unittest.TestCase):
    def check_fails(self, status, pattern, *arguments, **more):
        """This exit status, one line on standard error, nothing on standard output."""
        with self.subTest(arguments=arguments, **more):
            got = run(*arguments, **more)
            self.assertEqual(got.returncode, status, got.stderr)
            self.assertEqual(got.stdout, "")
            self.assertRegex(got.stderr, rf"\Apagedkv: {pattern}\n\Z")

    def check_json(self, *arguments, **more):
        got = run(*arguments, **more)
        self.assertEqual((got.returncode, got.stderr), (0, ""), arguments)
        return json.loads(got.stdout)


class Nothing(Case):
    """No driver, no device, no code for it."""

    COMMANDS = (("replay", TRACE, *SMALL), ("bench", "--quick", "--quiet"))

    def test_exit_status(self):
        for command in self.COMMANDS:
            command = (*command, "--backend", "cuda")
            start = "--backend cuda: PKV_E_"
            if not has_driver():
                unsupported = start + "UNSUPPORTED: .*"
                self.check_fails(4, unsupported, *command, program=plain, driver=False)
                self.check_fails(4, unsupported + "driver.*", *command, driver=False)
            self.check_fails(4, start + ".*", *command, PAGEDKV_FAKE_CUDA_DEVICES=0)
            self.check_fails(4, start + ".*", *command, PAGEDKV_FAKE_CUDA_INIT=999)
            self.check_fails(4, start + ".*", *command, PAGEDKV_FAKE_CUDA_CAPABILITY=70)
            self.check_fails(4, ".*", *command, PAGEDKV_FAKE_CUDA_LAUNCH=719)

    def test_bad_input_comes_first(self):
        self.check_fails(2, '--backend "tpu": not cpu or cuda', "replay", "--backend", "tpu")
        self.check_fails(2, '--backend "tpu": not one of cpu cuda', "bench", "--backend", "tpu")
        self.check_fails(2, ".*No such file.*", "replay", "missing", "--backend", "cuda",
                         driver=False)
        for case in ("pool", "gather", "layout", "swap"):
            self.check_fails(2, f"bench {case}: not with --backend cuda.*", "bench", case,
                             "--backend", "cuda", driver=False)
        for option in (("--huge-pages", "on"), ("--threads", 1), ("--isa", "c"),
                       ("--peers", "off")):
            self.check_fails(2, f"bench: no {option[0]} with --backend cuda", "bench", *option,
                             "--backend", "cuda", driver=False)
        self.check_fails(2, "bench: nothing to time.*", *BENCH, "--quiet", "--pattern", "none")

    def test_no_memory_of_the_device(self):
        self.check_fails(3, "--backend cuda: no .* GiB on the device.*", "replay", TRACE, *SMALL,
                         "--backend", "cuda", PAGEDKV_FAKE_CUDA_MEMORY=20000)


class Info(Case):
    def info(self, **more):
        got = run("info", "--json", "-", **more)
        self.assertEqual(got.returncode, 0, got.stderr)
        return json.loads(got.stdout)["cuda_device"], got.stderr

    def test_device(self):
        device, table = self.info()
        self.assertEqual((device["compute_capability"], device["devices"]), ("9.0", 2))
        self.assertGreater(device["multiprocessors"], 0)
        self.assertGreater(device["memory_bytes"], 0)
        self.assertGreaterEqual(device["driver_version"], 11000)
        self.assertIn(f"CUDA             {device['name']}, compute capability 9.0", table)

    def test_none(self):
        if not has_driver():
            device, table = self.info(program=plain, driver=False)
            self.assertIsNone(device)
            self.assertIn("no CUDA driver (libcuda.so.1)", table)
        device, table = self.info(PAGEDKV_FAKE_CUDA_DEVICES=0)
        self.assertIsNone(device)
        self.assertRegex(table, "CUDA  .*no device.*;\n.*no CUDA device")


class Replay(Case):
    def check_same(self, trace, *options):
        """The counts of both backends, nothing wrong in either."""
        with self.subTest(trace=trace, options=options):
            command = ("replay", trace, *SMALL, *options, "--json", "-")
            cpu = self.check_json(*command)
            cuda = self.check_json(*command, "--backend", "cuda")
            self.assertEqual({name: cuda[name] for name in COUNTS},
                             {name: cpu[name] for name in COUNTS})
            self.assertEqual((cuda["mismatched_tokens"], cuda["poison_errors"]), (0, 0))
            self.assertEqual((cuda["options"]["backend"], cuda["options"]["device"]),
                             ("cuda", "Fake GPU 0"))
            self.assertEqual((cpu["options"]["backend"], cpu["options"]["device"]), ("cpu", None))
            self.assertEqual((cpu["graphs"], cpu["status_word"], cuda["status_word"]),
                             (None, None, 0))
            return cuda

    def test_same_counts(self):
        report = self.check_same(TRACE, "--num-layers", 3)
        self.assertEqual(report["graphs"], 3)  # buckets of 16, 32 and 64 tokens
        self.assertGreater(report["verified_tokens"], 0)
        report = self.check_same(TRACE, "--max-num-batched-tokens", 5, "--num-layers", 2)
        self.assertEqual(report["graphs"], 1)
        self.check_same(TRACE, "--page-size", 7, "--dtype", "fp8_e4m3", "--head-dim", 3)
        self.check_same(TRACE, "--verify", "off")
        self.check_same(os.devnull, "--format", "azure")

    def test_many_layers(self):
        self.check_same(TRACE, "--num-layers", 70, "--head-dim", 2, "--max-requests", 2)

    def test_prefixes_and_requests_put_back(self):
        report = self.check_same(PROMPTS, "--prefix-cache", "on", "--preempt", "recompute",
                                 "--num-pages", 30)
        self.assertGreater(report["prefix_hit_tokens"], 0)
        self.assertGreater(report["evictions"], 0)

    def test_synthetic(self):
        got = [self.check_json("replay", "--max-requests", 3, "--num-kv-heads", 1, "--head-dim", 4,
                               "--num-pages", 1024, "--threads", 1, "--quiet", "--json", "-",
                               "--backend", backend) for backend in ("cpu", "cuda")]
        self.assertEqual(*({name: report[name] for name in COUNTS} for report in got))

    def test_conversions(self):
        for dtype, cache_dtype in (("bf16", "int8"), ("f32", "int4"), ("f16", "fp8_e4m3"),
                                   ("bf16", "fp8_e5m2"), ("f32", "bf16")):
            self.check_same(TRACE, "--dtype", dtype, "--cache-dtype", cache_dtype)

    def test_table(self):
        got = run("replay", TRACE, *SMALL[:-1], "--backend", "cuda")
        self.assertEqual((got.returncode, got.stderr), (0, ""))
        self.assertIn("cache on Fake GPU 0", got.stdout)
        self.assertIn("0 differ, 0 stray writes", got.stdout)


class Faults(Case):
    MANY = ("replay", TRACE, *SMALL, "--num-layers", 2, "--backend", "cuda")
    # One request at a time: the first one has 17 + 9 tokens in pages 0 and 1.
    ALONE = ("replay", TRACE, *SMALL, "--max-num-reqs", 1, "--backend", "cuda")

    def test_wrong_data(self):
        for fault in ("swap", "wrong-row", "wrong-layer", "fewer-layers"):
            self.check_fails(1, f"({TOKEN}|{STRAY})", *self.MANY, FAULT=fault)

    def test_conversions(self):
        for cache_dtype in ("int8", "fp8_e4m3"):
            self.check_fails(1, TOKEN, *self.MANY, "--cache-dtype", cache_dtype, FAULT="swap")

    def test_wrong_place(self):
        self.check_fails(1, f"({TOKEN}|{STRAY})", *self.MANY, FAULT="wrong-slot")

    def test_stray_writes(self):
        for slot in (17, 25, 31, 32, SLOTS - 1):
            self.check_fails(1, STRAY.replace(r"slot \d+", f"slot {slot}"), *self.ALONE,
                             FAULT="stray", FAULT_SLOT=slot)
        self.check_fails(1, TOKEN.replace(r"slot \d+", "slot 3"), *self.ALONE, FAULT="stray",
                         FAULT_SLOT=3)
        for slot, side in ((-1, "in front of"), (SLOTS, "behind")):
            self.check_fails(1, rf"stray write {side} the cache: expected 0xa5, found 0x\w\w",
                             *self.ALONE, FAULT="stray", FAULT_SLOT=slot)

    def test_columns_behind_the_count_would_show(self):
        self.check_fails(1, f"({TOKEN}|{STRAY})", *self.MANY, FAULT="all-columns")

    def test_count_out_of_range(self):
        got = run(*self.MANY, "--json", "-", FAULT="count")
        self.assertEqual(got.returncode, 1)
        self.assertRegex(got.stderr, rf"\Apagedkv: {TOKEN}\n\Z")
        self.assertEqual(json.loads(got.stdout)["status_word"], 1 << 30)

    def test_status_word(self):
        self.check_fails(1, "the kernels' status word is 0x00000003: 3 slices skipped", *self.MANY,
                         FAULT="status")


class Bench(Case):
    def rows(self, *arguments):
        got = run(*BENCH, *arguments)
        self.assertEqual(got.returncode, 0, got.stderr)
        rows = json.loads(got.stdout)
        for line in got.stderr.splitlines():
            self.assertLessEqual(len(line), 80, line)
        for row in rows:
            self.assertEqual((row["backend"], row["device"]), ("cuda", "Fake GPU 0"))
            self.assertEqual((row["nodes"], row["rounds"]), (16, 1))
            self.assertGreater(row["ns_median"], 0)
            if row["bytes_per_s"] is not None and row["impl"] == "pagedkv":
                self.assertGreater(row["limit_fraction"], 0)
                self.assertGreater(row["floor_ns"], 0)
        return rows

    def check_bytes(self, row, moved):
        self.assertAlmostEqual(row["bytes_per_s"] * row["ns_median"] / 1e9 / moved, 1)

    def test_prefill(self):
        rows = self.rows("update", "--pattern", "prefill")
        self.assertEqual({(row["layout"], row["page_size"]) for row in rows},
                         {(layout, S) for layout in ("combined", "nhd", "hnd") for S in (16, 64)})
        self.assertEqual({row["impl"] for row in rows}, {"pagedkv", "pkv n=0", "memcpy"})
        for row in rows:
            S, tokens = row["page_size"], row["tokens"]
            if row["impl"] == "pagedkv":
                self.assertEqual(row["num_slices"], (tokens + S - 1) // S)
                self.check_bytes(row, 2 * tokens * 2 * 2 * 32 * 2)
            elif row["impl"] == "pkv n=0":
                self.assertEqual((row["num_slices"], row["bytes_per_s"]), (0, None))

    def test_decode_and_merged(self):
        rows = self.rows("update", "--pattern", "decode", "--layout", "nhd")
        self.assertEqual({row["source"] for row in rows}, {"cold", "warm"})
        self.assertEqual({row["num_slices"] for row in rows if row["impl"] == "pagedkv"},
                         {1, 8, 64, 256, 512, 2048})
        rows = self.rows("update", "--pattern", "merged")
        self.assertEqual({row["num_slices"] for row in rows if row["impl"] == "pagedkv"}, {2})

    def test_padded(self):
        rows = self.rows("update", "--pattern", "padded")
        padded = {(row["num_slices"], row["padded_num_slices"]): row for row in rows
                  if row["impl"] == "pagedkv"}
        self.assertEqual(set(padded), {(n, N) for N in (256, 1024, 8192)
                                       for n in (0, 1, 7, 33, N) if n <= 2048})
        for (n, N), row in padded.items():
            self.assertEqual(row["unpadded_fraction"] is not None, n < N)
        self.assertTrue(all(row["padded_num_slices"] == row["num_slices"] for row in rows
                            if row["impl"] == "pkv N=n"))

    def test_layers(self):
        rows = self.rows("update", "--pattern", "layers")
        self.assertEqual({(row["impl"], row["launch"]) for row in rows},
                         {(impl, launch) for impl in ("pagedkv", "pagedkv_calls")
                          for launch in ("graph", "stream")} |
                         {("pkv n=0", "graph"), ("memcpy", "graph")})
        for row in rows:
            self.assertEqual(row["layers"], 32)
            self.assertEqual(row["calls_fraction"] is not None, row["impl"] == "pagedkv")
            if row["impl"] == "pagedkv":
                self.check_bytes(row, 32 * 2 * row["tokens"] * 2 * 2 * 32 * 2)

    def test_convert(self):
        rows = [row for row in self.rows("convert") if row["impl"] == "pagedkv"]
        self.assertEqual({(row["pattern"], row["cache_dtype"], row["layout"]) for row in rows},
                         {(f"{dtype}_tensor", dtype, layout) for dtype in ("fp8_e4m3", "int8")
                          for layout in ("combined", "nhd")})
        for row in rows:
            self.assertEqual((row["src_dtype"], row["scales"]), ("bf16", "tensor"))
            self.check_bytes(row, row["tokens"] * 2 * 2 * 32 * (2 + 1))

    def test_pages(self):
        rows = [row for row in self.rows("copy-pages") if row["impl"] == "pagedkv"]
        self.assertEqual([row["pages"] for row in rows], [128, 32, 8])
        for row in rows:
            self.check_bytes(row, 2 * (2 << 20))

    def test_plan(self):
        rows = self.rows("plan")
        self.assertEqual({row["plan"] for row in rows}, {"exact", "merged"})
        slices = {(row["tokens"], row["plan"]): row["num_slices"] for row in rows
                  if row["pattern"] == "prefill" and row["impl"] == "pagedkv"}
        self.assertLess(slices[8192, "merged"], slices[8192, "exact"])

    def test_wrong_bytes_are_found(self):
        for fault in ("swap", "wrong-row", "wrong-slot", "fewer-layers", "wrong-layer"):
            pattern = "layers" if "layer" in fault else "decode"
            self.check_fails(1, rf"bench update {pattern}: a wrong byte in page \d+ of layer \d+, "
                             r"slice \d+", *BENCH, "--quiet", "update", "--pattern", pattern,
                             "--layout", "combined", FAULT=fault)
        self.check_fails(1, "bench update decode: the kernels' status word is 0x00000003", *BENCH,
                         "--quiet", "update", "--pattern", "decode", FAULT="status")


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit("usage: cuda.py PLAIN FOLDER EMULATED [unittest options]")
    plain, folder, emulated = map(os.path.abspath, sys.argv[1:4])
    unittest.main(argv=[sys.argv[0], *sys.argv[4:]])
