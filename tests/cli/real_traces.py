"""Whole runs over the public traces: real_traces.py PROGRAM.  Exit status 77 without the traces."""

import json
import os
import subprocess
import sys
import unittest
from pathlib import Path

TRACES = Path(__file__).resolve().parents[3] / "shared" / "traces"
CONV = "AzureLLMInferenceTrace_conv.csv"
CODE = "AzureLLMInferenceTrace_code.csv"
MOONCAKE = "mooncake_conversation_trace.jsonl"
NO_TRACES = 77

program = ""


def requests_of(path, n):
    """(prompt, output) of the first n requests, read in another way than the program."""
    with path.open() as file:
        lines = [line for line in file if line.strip()]
    if path.suffix == ".csv":
        return [tuple(map(int, line.split(",")[1:])) for line in lines[1:n + 1]]
    rows = map(json.loads, lines[:n])
    return [(row["input_length"], row["output_length"]) for row in rows]


class RealTraces(unittest.TestCase):
    def check(self, trace, n, *options):
        got = subprocess.run(
            [program, "replay", TRACES / trace, "--max-requests", str(n), *options, "--quiet",
             "--json", "-"], capture_output=True, text=True, check=False)
        self.assertEqual((got.returncode, got.stderr), (0, ""))
        report = json.loads(got.stdout)
        requests = requests_of(TRACES / trace, n)
        written = sum(max(prompt, prompt + output - 1) for prompt, output in requests)
        self.assertEqual(len(requests), n)
        expected = {
            "requests": n, "requests_finished": n,
            "tokens_written": written - report["prefix_hit_tokens"],
            "prompt_tokens": sum(prompt for prompt, _ in requests), "verified_tokens": written,
            "mismatched_tokens": 0, "poison_errors": 0, "plan_errors": 0, "pages_leaked": 0}
        self.assertEqual({name: report[name] for name in expected}, expected)
        return report

    def test_conversation(self):
        self.check(CONV, 2000)

    def test_code(self):
        self.check(CODE, 2000)

    def test_mooncake(self):
        self.check(MOONCAKE, 300)

    def test_odd_shape(self):
        self.check(CONV, 2000, "--page-size", "33", "--head-dim", "80", "--num-kv-heads", "3")

    def test_odd_shape_int8(self):
        self.check(CONV, 2000, "--page-size", "33", "--head-dim", "80", "--num-kv-heads", "3",
                   "--dtype", "int8")

    def test_prefixes_in_a_small_pool(self):
        report = self.check(MOONCAKE, 300, "--prefix-cache", "on", "--num-pages", "12000",
                            "--preempt", "recompute", "--num-kv-heads", "1", "--head-dim", "8")
        for name in ("prefix_hit_tokens", "evictions", "preemptions"):
            self.assertGreater(report[name], 0, name)

    def test_put_back(self):
        report = self.check(CONV, 2000, "--preempt", "recompute", "--num-pages", "4000",
                            "--num-kv-heads", "1", "--head-dim", "8")
        self.assertGreater(report["recomputed_tokens"], 0)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: real_traces.py PROGRAM [unittest options]")
    program = os.path.abspath(sys.argv[1])
    if not TRACES.is_dir():
        print(f"skipped: {TRACES} is not there, so no real trace was replayed")
        sys.exit(NO_TRACES)
    unittest.main(argv=[sys.argv[0], *sys.argv[2:]])
