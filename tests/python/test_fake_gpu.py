"""test_cuda.py in a process of its own: the fake driver would be every later caller's libcuda."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def test_the_bindings_of_cuda() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", str(HERE.parents[1] / "pyproject.toml"),
         "--rootdir", str(HERE.parents[1]), "-p", "no:cacheprovider", str(HERE / "test_cuda.py")],
        env={**os.environ, "PAGEDKV_TEST_FAKE_GPU": "1"}, capture_output=True, text=True,
        check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(r"^\d+ passed in", run.stdout, re.MULTILINE), run.stdout
