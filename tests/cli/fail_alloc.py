"""Every allocation of the program made to fail in turn: one line, a status, nothing half done.

Usage: fail_alloc.py PROGRAM SHIM [unittest options]
"""
import os
import subprocess
import sys
import tempfile
import unittest

PROGRAM, SHIM = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2])
DATA = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "data")
SMALL = ["--num-pages", "200", "--head-dim", "8", "--num-kv-heads", "1",
         "--max-num-batched-tokens", "256"]
MOST_ALLOCATIONS = 20000


class FailAlloc(unittest.TestCase):
    def fail_each(self, rest, arguments, produces):
        """Fails allocation 1, 2, ... until a run no longer reaches the one to fail."""
        for n in range(1, MOST_ALLOCATIONS):
            with tempfile.TemporaryDirectory() as folder:
                out = os.path.join(folder, "out.json")
                env = dict(os.environ, LD_PRELOAD=SHIM, FAIL_AT=str(n))
                if rest:
                    env["FAIL_REST"] = "1"
                run = subprocess.run([PROGRAM, *arguments, "--json", out], env=env,
                                     stdin=subprocess.DEVNULL, capture_output=True, text=True)
                where = f"allocation {n} of {arguments}, status {run.returncode}: {run.stderr!r}"
                if run.returncode == 0:
                    self.assertEqual(os.listdir(folder), ["out.json"], where)
                    self.assertGreaterEqual(n, produces, "hardly an allocation was counted")
                    return
                self.assertIn(run.returncode, (2, 3), where)
                self.assertEqual(run.stderr.count("\n"), 1, where)
                self.assertTrue(run.stderr.startswith("pagedkv: "), where)
                self.assertEqual(os.listdir(folder), [], where)
        self.fail(f"{arguments} still fails at allocation {MOST_ALLOCATIONS}")

    def test_plan(self):
        request = ["--request", "0,10,100", "--request", "10,30,200:201:202"]
        for rest in (False, True):
            self.fail_each(rest, ["plan", "--page-size", "16", *request], 20)

    def test_replay_azure(self):
        self.fail_each(True, ["replay", os.path.join(DATA, "azure_small.csv"),
                              "--max-requests", "2", *SMALL], 20)

    def test_replay_with_reuse(self):
        self.fail_each(True, ["replay", os.path.join(DATA, "mooncake_small.jsonl"),
                              "--max-requests", "2", "--prefix-cache", "on",
                              "--preempt", "recompute", *SMALL], 20)

    def test_replay_mooncake(self):
        self.fail_each(True, ["replay", os.path.join(DATA, "mooncake_small.jsonl"),
                              "--max-requests", "1", *SMALL], 20)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
