"""The engine's write of new K and V, taken over: one plan a step, one call a layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor

from .. import _core
from .._errors import InvalidError
from ._transformers_seam import Counts, refuse

Pair = tuple[Tensor, Tensor]  # K and V


class _CacheView(Tensor):
    """The keys or the values of one layer, as the engine holds them, with their write taken over.

    Reads go to the tensor itself. Only index_copy_ is known as a write, and each view has its
    own: any other way is refused.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl


def _refuse_write(name: str) -> Callable[..., NoReturn]:
    def method(*_: object, **__: object) -> NoReturn:
        refuse(f"the engine writes its cache by {name}, not by index_copy_")
    return method


for _name in ("__setitem__", "copy_", "index_put_", "index_add_", "scatter_", "masked_scatter_",
              "index_fill_", "fill_", "zero_"):
    setattr(_CacheView, _name, _refuse_write(_name))


def _view(tensor: Tensor, write: Callable[[int, Tensor, Tensor], None]) -> _CacheView:
    view = tensor.as_subclass(_CacheView)
    view.index_copy_ = write  # type: ignore[method-assign, assignment]
    return view


class Layer:
    """One layer's cache, and the views of it that the engine is handed."""

    def __init__(self, rows: Pair, pages: Pair):
        self.taker = taker = Taker(rows, pages)
        self.views = (_view(rows[0], partial(taker.take, "K")),
                      _view(rows[1], partial(taker.take, "V")))


class Taker:
    """Joins the engine's write of K and its write of V to one.

    Holds neither a view nor, between updates, the group: no cycle keeps a cache alive.
    """

    def __init__(self, rows: Pair, pages: Pair):
        self.rows = rows  # as the engine addresses them, [rows, H, D]
        self.pages = pages  # the same memory as [blocks, page_size, H, D]
        self.dtype = rows[0].dtype
        self.expected: tuple[Group, Tensor, Tensor, Tensor] | None = None  # K, V, write index
        self.missing = ""  # of "KV"

    def expect(self, group: Group, key: Tensor, value: Tensor, write_index: Tensor) -> None:
        self.expected = group, key, value, write_index
        self.missing = "KV"

    def take(self, plane: str, dim: int, index: Tensor, source: Tensor) -> None:
        if self.expected is None or plane not in self.missing or dim != 0:
            refuse(f"an unexpected write of {plane}")
        group, key, value, write_index = self.expected
        if index is not write_index or source is not (key if plane == "K" else value):
            refuse(f"the engine changes the new {plane} or its index before the write")
        if self.missing == "KV":  # both now: whatever the engine reads next, it finds written
            group.write(self, key, value)
        self.missing = self.missing.replace(plane, "")


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
        self._make_room(256)
        self.flags = 0
        self.tokens = 0
        self.index: Tensor | None = None
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
        return Layer((key, value), (pages[0], pages[1]))

    def begin_step(self, write_index: Tensor) -> None:
        self.counts.plans += 1
        self.index = None  # until there is a plan
        self.tokens = write_index.numel()  # len() of a tensor is Python
        plan = self._plan_cuda if self.status is not None else self._plan_cpu
        self.planned = plan(write_index)
        self.index = write_index

    def is_planned(self, write_index: Tensor) -> bool:
        """Is it what was planned, if in another object?"""
        return (self.index is not None and write_index.data_ptr() == self.index.data_ptr()
                and write_index.shape == self.index.shape)

    def _make_room(self, tokens: int) -> None:
        self.capacity = tokens
        self.columns = torch.zeros(3, tokens, dtype=torch.int32)

    def _plan_cpu(self, write_index: Tensor) -> tuple[Any, Any]:
        """The engine's rows to slices of pages. Padding goes nowhere.

        The extension is called directly and tensors are kept: between two layers' work nothing
        of Python is in the processor's caches.
        """
        if self.tokens > self.capacity:
            self._make_room(2 * self.tokens)
        n = _core.plan_blocks(write_index, self.page_size, self.block_rows, self.num_rows,
                              self.trash, self.columns)
        if n < 0:
            refuse("a write index lies outside the pages of its layer")
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
        if key.dtype is not layer.dtype or value.dtype is not layer.dtype:
            refuse(f"new K and V of {key.dtype} and {value.dtype} for a cache of {layer.dtype}")
        slices, n = self.planned
        if self.status is None:
            _core.move(False, key, value, slices, key_pages, value_pages, n, None, self.flags)
        else:
            from ..torch import kv_cache_update_separate as update_cuda

            update_cuda(key_pages, value_pages, key, value, slices, n, page_size=self.page_size,
                        status_word=self.status)

    def check(self) -> None:
        """What a device could not raise."""
        if self.status is not None and (word := int(self.status.item())) != 0:
            raise InvalidError(f"the device refused slices of the engine's: status {word:#x}")
