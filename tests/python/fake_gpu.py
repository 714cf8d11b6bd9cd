"""GPUs without a GPU: the extension module on the fake driver of tests/cuda, and tensors there.

Only for a process of its own: whatever asks for libcuda.so.1 later finds the fake driver.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import importlib.util
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
NON_BLOCKING, THREAD_LOCAL, LEGACY = 1, 1, None


def _compile(out: Path, sources: list[Path], *options: str) -> None:
    subprocess.run(
        ["cc", "-std=gnu11", "-O1", "-shared", "-fPIC", "-pthread", "-fvisibility=hidden",
         "-ffp-contract=off", f"-I{ROOT / 'include'}", f"-I{sysconfig.get_path('include')}",
         *options, *map(str, sources), "-ldl", "-o", str(out)], check=True)


def build(folder: Path) -> FakeGpu:
    """Both libraries; as an image the module has what the fake driver takes for one."""
    cuda, source = ROOT / "tests" / "cuda", ROOT / "src"
    _compile(folder / "libcuda.so.1", [cuda / f"{name}.c" for name in (
        "fake_driver", "fake_graph", "fake_stream", "emulated")], "-Wl,-soname,libcuda.so.1")
    files = [*(ROOT / "python" / "src").glob("*.c"), *source.glob("*.c"),
             *(source / "cpu").glob("*.c"), *(source / "cuda").glob("*.c"), cuda / "image.c"]
    _compile(folder / "_core.so", [f for f in files if f.name != "absent.c"], "-Wl,-Bsymbolic")
    return FakeGpu(folder)


def load_core(path: Path) -> Any:
    """An extension module of its own: none of its devices is open yet."""
    loader = importlib.machinery.ExtensionFileLoader("_core", str(path))
    spec = importlib.util.spec_from_loader("_core", loader)
    assert spec is not None
    core = importlib.util.module_from_spec(spec)
    loader.exec_module(core)
    return core


class FakeGpu:
    """The driver, a stream for each of its two devices, and the module."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._driver = ctypes.CDLL(str(folder / "libcuda.so.1"))
        self.core = load_core(folder / "_core.so")
        self("cuInit", 0)
        self._contexts, self.streams = [], []
        for device in range(2):
            context, stream = ctypes.c_void_p(), ctypes.c_void_p()
            self("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
            self._contexts.append(context)
            self.use(device)
            self("cuStreamCreate", ctypes.byref(stream), NON_BLOCKING)
            self.streams.append(int(stream.value or 0))

    def __call__(self, name: str, *arguments: Any) -> None:
        code = getattr(self._driver, name)(*arguments)
        assert code == 0, f"{name}: {code}"

    def use(self, device: int) -> None:
        self("cuCtxSetCurrent", self._contexts[device])

    def fresh_core(self, folder: Path) -> Any:
        return load_core(Path(shutil.copy(self.folder / "_core.so", folder / "_core.so")))

    def synchronize(self, device: int = 0) -> None:
        self.use(device)
        self("cuStreamSynchronize", ctypes.c_void_p(self.streams[device]))

    @contextmanager
    def capture(self) -> Iterator[ctypes.c_void_p]:
        """A graph of what the body puts on device 0's stream, ready afterwards."""
        stream, graph = ctypes.c_void_p(self.streams[0]), ctypes.c_void_p()
        ready = ctypes.c_void_p()
        self.use(0)
        self("cuStreamBeginCapture_v2", stream, THREAD_LOCAL)
        yield ready
        self("cuStreamEndCapture", stream, ctypes.byref(graph))
        self("cuGraphInstantiateWithFlags", ctypes.byref(ready), graph, ctypes.c_uint64(0))
        self("cuGraphDestroy", graph)

    def replay(self, graph: ctypes.c_void_p) -> None:
        self("cuGraphLaunch", graph, ctypes.c_void_p(self.streams[0]))
        self.synchronize()

    def to_device(self, tensor: torch.Tensor, device: int = 0) -> DeviceTensor:
        return DeviceTensor(self, tensor, device)


class DeviceTensor:
    """What the bindings ask of a CUDA tensor; the host cannot look at its items."""

    is_cpu, is_cuda = False, True

    def __init__(self, gpu: FakeGpu, host: torch.Tensor, device: int) -> None:
        self._gpu, self._host, self._device = gpu, host, device
        address = ctypes.c_uint64()
        gpu.use(device)
        gpu("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(1, self._bytes().nbytes)))
        self._address = ctypes.c_uint64(address.value)
        self.write(host)

    def __del__(self) -> None:
        self._gpu.use(self._device)
        self._gpu("cuMemFree_v2", self._address)

    def _bytes(self) -> Any:
        """Of all the memory that the host's tensor is a view of."""
        storage = self._host.untyped_storage()
        return np.frombuffer((ctypes.c_uint8 * storage.nbytes()).from_address(storage.data_ptr()),
                             np.uint8)

    def write(self, host: torch.Tensor) -> None:
        assert host.dtype == self.dtype and host.stride() == self.stride()
        self._host = host
        raw = self._bytes()
        self._gpu.use(self._device)
        self._gpu("cuMemcpyHtoDAsync_v2", self._address, ctypes.c_void_p(raw.ctypes.data),
                  ctypes.c_size_t(raw.nbytes), LEGACY)
        self._gpu("cuStreamSynchronize", LEGACY)

    def cpu(self) -> torch.Tensor:
        """A copy with the same strides, as it is now: work on another stream may be waiting."""
        copy = self._host.untyped_storage().clone()
        self._gpu.use(self._device)
        self._gpu("cuMemcpyDtoHAsync_v2", ctypes.c_void_p(copy.data_ptr()), self._address,
                  ctypes.c_size_t(copy.nbytes()), LEGACY)
        self._gpu("cuStreamSynchronize", LEGACY)
        return torch.empty(0, dtype=self.dtype).set_(
            copy, self._host.storage_offset(), self._host.shape, self._host.stride())

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", self._device)

    @property
    def dtype(self) -> torch.dtype:
        return self._host.dtype

    @property
    def shape(self) -> torch.Size:
        return self._host.shape

    def get_device(self) -> int:
        return self._device

    def data_ptr(self) -> int:
        return self._address.value + self._host.storage_offset() * self._host.element_size()

    def stride(self) -> tuple[int, ...]:
        return self._host.stride()

    def element_size(self) -> int:
        return self._host.element_size()
