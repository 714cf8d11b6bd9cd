"""The TPU kernel through the real TPU compiler, which needs no TPU (docs/tpu.md).

PAGEDKV_LIBTPU=/path/to/libtpu.so makes these tests run.  Without it there are
none here, unless PAGEDKV_REQUIRE_LIBTPU=1 asks for a failure.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

LIBTPU = os.environ.get("PAGEDKV_LIBTPU", "")
REQUIRED = os.environ.get("PAGEDKV_REQUIRE_LIBTPU", "") == "1"

if LIBTPU:
    # It imports jax only; the compiler is loaded by the subprocess below.
    from tpu_aot import CASES, CHIPS

    IN_PLACE = [name for name in CASES if not CASES[name].says_row_major]
    COPIED = [name for name in CASES if CASES[name].says_row_major]

    @pytest.fixture(scope="module")
    def report():
        """What tpu_aot.py prints; a process of its own, since libtpu may abort."""
        script = pathlib.Path(__file__).with_name("tpu_aot.py")
        done = subprocess.run(
            [sys.executable, str(script)], env=os.environ | {"TPU_LIBRARY_PATH": LIBTPU},
            capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(done.stdout)

    @pytest.mark.parametrize("chip", CHIPS)
    @pytest.mark.parametrize("name", IN_PLACE)
    def test_compiles_in_place(report, name, chip):
        facts = report[f"{chip} {name}"]
        assert facts["kernels"] == 1
        assert facts["kernel_alias"] and facts["program_alias"]
        assert facts["copies"] == []
        assert facts["alias_bytes"] == facts["cache_bytes"]
        assert facts["temp_bytes"] < facts["cache_bytes"]

    @pytest.mark.parametrize("chip", CHIPS)
    @pytest.mark.parametrize("name", COPIED)
    def test_a_copy_is_seen(report, name, chip):
        """The check above would find a copy: here is one, because the layout is not kept."""
        assert report[f"{chip} {name}"]["copies"]

    def test_layout_rule(report):
        assert report["layout rule"]["wrong"] == []
        assert report["layout rule"]["tried"] > 0

elif REQUIRED:

    def test_libtpu_is_there():
        pytest.fail("PAGEDKV_REQUIRE_LIBTPU=1 and PAGEDKV_LIBTPU is not set")
