"""What every test of the Python package shares.

A framework that is not there is a failure, not a skip: the wheel's users have them all.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from pathlib import Path

# Before jax is imported anywhere: four devices of one host, and no other platform.
_FLAG = "--xla_force_host_platform_device_count=4"
if _FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}".strip()
os.environ["JAX_PLATFORMS"] = "cpu"

import pytest
from hypothesis import HealthCheck, settings

# The machine that tests this is busy, so no deadline; the same examples in every run.
settings.register_profile(
    "pagedkv", deadline=None, derandomize=True, print_blob=True, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
settings.load_profile("pagedkv")

_SOURCE = Path(__file__).resolve().parents[2] / "python"


def pytest_sessionstart(session: pytest.Session) -> None:
    for name in ("numpy", "ml_dtypes", "torch", "jax", "pagedkv"):
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            raise pytest.UsageError(f"{name} cannot be imported: {error}") from error
        if name == "pagedkv" and _SOURCE in Path(module.__file__ or "").resolve().parents:
            raise pytest.UsageError(f"pagedkv is {module.__file__}, not the installed package")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Each test starts with one thread a call; what it sets does not leak into the next."""
    import pagedkv

    before = pagedkv.get_num_threads()
    pagedkv.set_num_threads(1)
    yield
    pagedkv.set_num_threads(before)
