"""The cache of Hugging Face transformers' continuous batching, written by pagedkv.

::

    from pagedkv.integrations.transformers import patched

    with patched() as counts:
        outputs = model.generate_batch(prompts, ...)
    print(counts)

Inside the block every write of new keys and values into the engine's paged cache is one call of
pagedkv for a layer, K and V together. Its slices are planned once a step and reused by all layers
of a group (those of one attention type share pages). Everything else is the engine's own code:
scheduling, block tables, reading the cache, attention. So the tokens are the same.

Nothing is left to the engine's own write in silence. What cannot be taken over raises
:class:`pagedkv.UnsupportedError`: a release of transformers that does not look as expected, when
the block is entered; a cache of another layout, or an attention kernel that writes the cache
itself, when it is met. That happens in the engine's own thread, which logs it and fails the
requests; leaving the block raises it again.

``patched(pool=True)`` also hands out the pages: :class:`pagedkv.pool.Pool` in place of the engine's
free lists, reference counts and table of hashes. Cached pages are then evicted one at a time, the
oldest first, and found by their tokens, not by a hash alone. It stands in for caches of one kind of
layers; where full attention and windows share the memory, the engine cuts it into pages of two
sizes, which a pool has not, and that is refused.

The hook stands where transformers 5.24 has ``CacheAllocator.update``, and for the pool
``CachePool`` and ``BlockLedger``. See docs/engines.md.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from torch import Tensor

from .._errors import InvalidError, UnsupportedError
from .._update import READ_SOON
from ._transformers_pages import WRAPPERS, Pages
from ._transformers_seam import Counts, pool_seam, refuse, write_seam
from ._transformers_write import Group

_GROUP = "_pagedkv_group"  # an allocator's own attribute while the hook is set

__all__ = ["Counts", "check", "disable", "enable", "patched"]


def check(*, pool: bool = False) -> None:
    """Can the hook be set in the installed release? UnsupportedError says what differs."""
    write_seam()
    if pool:
        pool_seam()


class _Hook:
    """The engine's classes with their methods exchanged."""

    def __init__(self, group: type[Group] = Group, *, pool: bool = False):
        self.counts = Counts()
        self.with_pool = pool
        self.error: BaseException | None = None
        self.make_group = group  # the benchmark has others
        self.groups: weakref.WeakKeyDictionary[Any, Group] = weakref.WeakKeyDictionary()
        self.saved: list[tuple[Any, str, Any]] = []

    def set(self) -> None:
        cache_class, allocators = write_seam()
        if self.with_pool:
            cache, base = pool_seam()
            for name, wrapper in WRAPPERS.items():
                self._exchange(base, name, wrapper(vars(base)[name]))
            self._exchange(cache, "CachePool", self._cache_pool)
        update = self._update_of_known(vars(cache_class)["update"], frozenset(allocators))
        self._exchange(cache_class, "update", update)
        for allocator in allocators:
            original = vars(allocator)["update"]
            self._exchange(allocator, "update", self._update(original))
            self._exchange(allocator, "get_cache_for_block_table", self._no_block_table())

    def _cache_pool(
        self, num_sectors: int, num_allocators: int, num_reserved_sectors: int = 2,
    ) -> Pages:
        if num_allocators != 1:
            self._refuse(f"the cache has {num_allocators} kinds of layers, whose pages differ in "
                         "size: no pool for these, pass pool=False")
        return Pages(self.counts, self.tell, num_sectors, num_reserved_sectors)

    def tell(self, error: BaseException) -> None:
        """In the engine's thread: it is raised again where the hook is taken back."""
        self.error = self.error or error

    def _refuse(self, what: str) -> NoReturn:
        try:
            refuse(what)
        except UnsupportedError as error:
            self.tell(error)
            raise

    def _exchange(self, owner: Any, name: str, function: Any) -> None:
        self.saved.append((owner, name, vars(owner)[name]))
        setattr(owner, name, function)

    def undo(self) -> None:
        for owner, name, original in reversed(self.saved):
            setattr(owner, name, original)
        self.saved.clear()
        for allocator in list(self.groups):
            delattr(allocator, _GROUP)

    def _group(self, allocator: Any) -> Group:
        group = self.groups[allocator] = self.make_group(allocator, self.counts)
        setattr(allocator, _GROUP, group)
        return group

    def _update_of_known(
        self, original: Callable[..., Any], known: frozenset[type],
    ) -> Callable[..., Any]:
        hook = self

        def update(self: Any, key_states: Tensor, value_states: Tensor, layer_idx: int,
                   kwargs: dict[str, Any]) -> Any:
            kind = type(self.layer_to_allocator[layer_idx])
            if kind not in known:  # its update, if it has one of its own, is not the hook's
                hook._refuse(f"has a cache of its own kind, {kind.__name__}")
            return original(self, key_states, value_states, layer_idx, kwargs)

        return update

    def _update(self, original: Callable[..., Any]) -> Callable[..., Any]:
        hook, counts = self, self.counts

        def update(self: Any, key_states: Tensor, value_states: Tensor, layer_idx: int,
                   read_index: Tensor, write_index: Tensor) -> Any:
            try:
                group = getattr(self, _GROUP, None) or hook._group(self)
                # A step runs the layers in order, so the first one begins a step. Under a
                # captured graph the plan is captured with it.
                if layer_idx == group.first_layer:
                    # With reads the engine reads the rows back as soon as they are there.
                    group.flags = READ_SOON if read_index.numel() != 0 else 0
                    group.begin_step(write_index)
                elif write_index is not group.index and not group.is_planned(write_index):
                    refuse(f"layer {layer_idx} is not of the step that was planned")
                layer, views = group.layers[layer_idx], self._kv_token_views
                taker, own = layer.taker, views[layer_idx]
                taker.expect(group, key_states, value_states, write_index)
                views[layer_idx] = layer.views
                try:
                    result = original(self, key_states, value_states, layer_idx, read_index,
                                      write_index)
                    if taker.missing:
                        refuse("an update did not write K and V once each")
                finally:
                    views[layer_idx] = own
                    taker.expected = None
                counts.writes += 1
                counts.write_calls_of_engine += 2
                counts.tokens += group.tokens
                return result
            except BaseException as error:
                hook.tell(error)
                raise

        return update

    def _no_block_table(self) -> Callable[..., Any]:
        hook = self

        def get_cache_for_block_table(self: Any, layer_idx: int) -> Any:
            hook._refuse("the attention kernel writes the cache itself (decode fast path); set "
                         "max_blocks_per_request=0 in the ContinuousBatchingConfig")

        return get_cache_for_block_table


_lock = threading.Lock()
_active: _Hook | None = None


def _enable(hook: _Hook) -> Counts:
    global _active
    with _lock:
        if _active is not None:
            raise InvalidError("pagedkv.integrations.transformers: the hook is set already")
        hook.set()
        _active = hook
    return hook.counts


def enable(*, pool: bool = False) -> Counts:
    """Set the hook for all models of this process, until :func:`disable`.

    Caches that exist already are written by pagedkv from their next step on.

    Args:
        pool: the pages of caches that are made from now on come from :class:`pagedkv.pool.Pool`.

    Returns:
        Its counts, which go on counting.

    Raises:
        UnsupportedError: the installed release is not as expected. InvalidError: it is set.
    """
    return _enable(_Hook(pool=pool))


def disable() -> None:
    """Take the hook back. Call it when no step is running.

    Raises:
        The first error that a step met, if any. InvalidError: the hook is not set.
    """
    global _active
    with _lock:
        if _active is None:
            raise InvalidError("pagedkv.integrations.transformers: the hook is not set")
        hook, _active = _active, None
        hook.undo()
    if hook.error is not None:
        raise hook.error
    for group in list(hook.groups.values()):
        group.check()


@contextmanager
def _patched(hook: _Hook) -> Iterator[Counts]:
    counts = _enable(hook)
    try:
        yield counts
    except BaseException:
        try:
            disable()
        except BaseException:
            pass  # the block's own exception is on its way
        raise
    disable()


def patched(*, pool: bool = False) -> Any:
    """:func:`enable` and :func:`disable` around a block; gives the :class:`Counts`.

    >>> with patched() as counts:                       # doctest: +SKIP
    ...     outputs = model.generate_batch(prompts)
    """
    return _patched(_Hook(pool=pool))
