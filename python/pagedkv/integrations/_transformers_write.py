"""The engine's write of new K and V, taken over: one plan a step, one call a layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from .. import _core
from .._errors import InvalidError
from .._update import READ_SOON
from ._transformers_seam import Counts, refuse

_Take = Callable[[str, int, Tensor, Tensor], None]
Pair = tuple[Tensor, Tensor]  # K and V


class _CacheView(Tensor):
    """The keys or the values of one layer, as the engine holds them, with their write taken over.

    Reads go to the tensor itself. Only index_copy_ is known as a write: any other way is refused.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl
    plane: str
    take: _Take

    def index_copy_(  # type: ignore[override]
        self, dim: int, index: Tensor, source: Tensor,
    ) -> _CacheView:
        self.take(self.plane, dim, index, source)
        return self


def _refuse_write(name: str) -> Callable[..., NoReturn]:
    def method(*_: object, **__: object) -> NoReturn:
        refuse(f"the engine writes its cache by {name}, not by index_copy_")
    return method


for _name in ("__setitem__", "copy_", "index_put_", "index_add_", "scatter_", "masked_scatter_",
              "index_fill_", "fill_", "zero_"):
    setattr(_CacheView, _name, _refuse_write(_name))


def _view(tensor: Tensor, plane: str, take: _Take) -> _CacheView:
    view = tensor.as_subclass(_CacheView)
    view.plane, view.take = plane, take
    return view


class Layer:
    """One layer's cache, and the views of it that the engine is handed."""

    def __init__(self, group: Group, rows: Pair, pages: Pair):
        self.taker = Taker(group, rows, pages)
        self.views = (_view(rows[0], "K", self.taker.take), _view(rows[1], "V", self.taker.take))


class Taker:
    """Joins the engine's write of K and its write of V to one; holds no view, so no cycle."""

    def __init__(self, group: Group, rows: Pair, pages: Pair):
        self.group = group
        self.rows = rows  # as the engine addresses them, [rows, H, D]
        self.pages = pages  # the same memory as [blocks, page_size, H, D]
        self.expected: tuple[Tensor, Tensor, Tensor] | None = None
        self.seen = ""

    def take(self, plane: str, dim: int, index: Tensor, source: Tensor) -> None:
        if self.expected is None or plane in self.seen or dim != 0:
            refuse(f"an unexpected write of {plane}")
        key, value, write_index = self.expected
        if index is not write_index or source is not (key if plane == "K" else value):
            refuse(f"the engine changes the new {plane} or its index before the write")
        self.seen += plane
        self.group.counts.write_calls_of_engine += 1
        if len(self.seen) == 1:  # both now: whatever the engine reads next, it finds written
            self.group.write(self, key, value)


class Group:
    """The layers that share one allocator, and this step's plan for them."""

    def __init__(self, allocator: Any, counts: Counts):
        self.counts = counts
        try:
            self.page_size = int(allocator.tokens_per_page)
            self.block_rows = int(allocator.block_physical_stride)
            self.trash = int(allocator.write_trash_index)
            self.first_layer = int(allocator.layer_indices[0])
            views = dict(allocator._kv_token_views)
        except (AttributeError, IndexError, TypeError) as error:
            refuse(f"{type(allocator).__name__} is not as expected ({error})")
        self.layers = {layer: self._layer(*pair) for layer, pair in views.items()}
        self.device = next(iter(self.layers.values())).views[0].device
        blocks = min(layer.taker.pages[0].shape[0] for layer in self.layers.values())
        self.num_slots, self.num_rows = blocks * self.page_size, blocks * self.block_rows
        self.trash_slot = self.trash // self.block_rows * self.page_size
        self.columns = np.zeros((3, 256), np.int32)
        self.read_soon = False
        self.planned: Any = None
        self.status: Tensor | None = None
        if self.device.type == "cuda":
            from ..torch import open_cuda

            open_cuda(self.device)
            self.status = torch.zeros(1, dtype=torch.int32, device=self.device)
        elif self.device.type != "cpu":
            refuse(f"the cache is on {self.device}")

    def _layer(self, key: Tensor, value: Tensor) -> Layer:
        """A block holds, for each layer, a page of K and behind it one of V."""
        size, rows = self.page_size, self.block_rows
        if (key.dim() != 3 or key.shape[1:] != value.shape[1:] or key.dtype != value.dtype
                or not key.is_contiguous() or not value.is_contiguous()
                or rows % (2 * size) != 0
                or value.data_ptr() - key.data_ptr() != size * key.stride(0) * key.element_size()):
            refuse(f"the cache's layout is unknown: K {tuple(key.shape)}, V "
                   f"{tuple(value.shape)}, {size} tokens a page, {rows} rows a block")
        row, tail = key.stride(0), tuple(key.shape[1:])
        blocks = (value.shape[0] - size) // rows + 1  # the last block may end behind its V
        strides = (rows * row, row, key.stride(1), 1)
        pages = [torch.as_strided(t, (blocks, size, *tail), strides, t.storage_offset())
                 for t in (key, value)]
        return Layer(self, (key, value), (pages[0], pages[1]))

    def begin_step(self, write_index: Tensor) -> None:
        self.counts.plans += 1
        self.index = write_index
        self.tokens = len(write_index)
        plan = self._plan_cuda if self.device.type == "cuda" else self._plan_cpu
        self.planned = plan(write_index)

    def _plan_cpu(self, write_index: Tensor) -> tuple[Any, Any]:
        """The engine's rows to slices, and these to pages. Padding goes nowhere.

        A page begins at a multiple of its size in the engine's rows too, so rows serve as slots,
        and what is translated is slices, which are fewer. The extension is called directly and
        arrays are kept: between two layers' work nothing of Python is in the processor's caches.
        """
        tokens = len(write_index)
        if tokens > self.columns.shape[1]:
            self.columns = np.zeros((3, 2 * tokens), np.int32)
        n = _core.plan_slots(write_index.numpy(), self.page_size, self.num_rows, self.page_size,
                             None, self.columns)
        starts = self.columns[0, :n]
        block, offset = np.divmod(starts, self.block_rows)
        if n and int(offset.max()) >= self.page_size:
            refuse("a write index lies outside the pages of its layer")
        block *= self.page_size
        np.add(block, offset, out=starts)
        if (padding := starts == self.trash_slot).any():
            self.columns[2, :n][padding] = 0  # an empty slice is nothing
        self.counts.slices += n
        return self.columns, n

    def _plan_cuda(self, write_index: Tensor) -> tuple[Tensor, Tensor]:
        """The same on the device: nothing is read by the host, so it can be captured.

        An index outside the pages becomes a slot outside the cache, which the status word tells.
        """
        from ..torch import plan_slot_mapping_

        offset = write_index % self.block_rows
        slots = (write_index // self.block_rows) * self.page_size + offset
        slots = torch.where(offset < self.page_size, slots, self.num_slots)
        slots = torch.where(write_index == self.trash, -1, slots)
        slices = torch.empty(3, max(1, self.tokens), dtype=torch.int32, device=self.device)
        n = torch.empty(1, dtype=torch.int32, device=self.device)
        plan_slot_mapping_(slots, slices=slices, num_slices=n, page_size=self.page_size,
                           num_slots=self.num_slots, status_word=self.status)
        return slices, n

    def write(self, layer: Taker, key: Tensor, value: Tensor) -> None:
        key_pages, value_pages = layer.pages
        if key.dtype != key_pages.dtype or value.dtype != value_pages.dtype:
            refuse(f"new K and V of {key.dtype} for a cache of {key_pages.dtype}")
        self.counts.writes += 1
        self.counts.tokens += self.tokens
        slices, n = self.planned
        if self.status is None:
            _core.move(False, key, value, slices, key_pages, value_pages, n, None,
                       READ_SOON if self.read_soon else 0)
        else:
            from ..torch import kv_cache_update_separate as update_cuda

            update_cuda(key_pages, value_pages, key, value, slices, n, page_size=self.page_size,
                        status_word=self.status)

    def check(self) -> None:
        """What a device could not raise."""
        if self.status is not None and (word := int(self.status.item())) != 0:
            raise InvalidError(f"the device refused slices of the engine's: status {word:#x}")
