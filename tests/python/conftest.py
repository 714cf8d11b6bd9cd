"""What every test of the Python package shares.

A framework that is not there is a failure, not a skip: the wheel's users have them all. Tests of
the mark `gpu` run alone, with PAGEDKV_TEST_GPU=1: exit status 77 where there is no GPU.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_GPU = os.environ.get("PAGEDKV_TEST_GPU") == "1"
_NO_GPU_STATUS = 77
_FAKE_GPU = os.environ.get("PAGEDKV_TEST_FAKE_GPU") == "1"  # set by test_fake_gpu.py

# Before jax is imported anywhere: four devices of one host, and no other platform.
_FLAG = "--xla_force_host_platform_device_count=4"
if _GPU:
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
else:
    if _FLAG not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}".strip()
    os.environ["JAX_PLATFORMS"] = "cpu"

import pytest

if not _GPU:  # a machine with a GPU need not have it
    from hypothesis import HealthCheck, settings

    # The machine that tests this is busy, so no deadline; the same examples in every run.
    settings.register_profile(
        "pagedkv", deadline=None, derandomize=True, print_blob=True, database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
    settings.load_profile("pagedkv")

_SOURCE = Path(__file__).resolve().parents[2] / "python"
_left_out: list[Any] = []


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs an NVIDIA GPU; run with PAGEDKV_TEST_GPU=1")


def pytest_sessionstart(session: pytest.Session) -> None:
    for name in ("numpy", "pagedkv") if _GPU else ("numpy", "ml_dtypes", "torch", "jax", "pagedkv"):
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            raise pytest.UsageError(f"{name} cannot be imported: {error}") from error
        if name == "pagedkv" and _SOURCE in Path(module.__file__ or "").resolve().parents:
            raise pytest.UsageError(f"pagedkv is {module.__file__}, not the installed package")
    if _GPU:
        import test_gpu

        if not (test_gpu.torch_has_gpu() or test_gpu.jax_has_gpu()):
            pytest.exit("no GPU that PyTorch or JAX can use: not run", _NO_GPU_STATUS)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """The other files need what a machine with a GPU need not have; test_cuda.py, a process."""
    name = collection_path.name
    if _GPU and name.startswith("test_"):
        return name != "test_gpu.py"
    return True if name == "test_cuda.py" and not _FAKE_GPU else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not _GPU:
        _left_out.extend(item for item in items if item.get_closest_marker("gpu"))
        items[:] = [item for item in items if item not in _left_out]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _left_out:
        terminalreporter.write_line(
            f"{len(_left_out)} tests of test_gpu.py were not run: they need a GPU and "
            "PAGEDKV_TEST_GPU=1")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Each test starts with one thread a call; what it sets does not leak into the next."""
    import pagedkv

    before = pagedkv.get_num_threads()
    pagedkv.set_num_threads(1)
    yield
    pagedkv.set_num_threads(before)
