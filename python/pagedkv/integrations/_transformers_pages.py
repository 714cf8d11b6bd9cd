"""The engine's pages, handed out by a pool: its CachePool and its BlockLedger in one."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import Tensor

from ..pool import Pool
from ._transformers_seam import Counts, refuse


def _told(method: Callable[..., Any]) -> Callable[..., Any]:
    """What the engine only logs, failing the requests, the hook raises again."""
    @wraps(method)
    def call(self: Pages, *arguments: Any, **options: Any) -> Any:
        try:
            return method(self, *arguments, **options)
        except BaseException as error:
            self.tell(error)
            raise

    return call


class Pages:
    """The engine's CachePool and BlockLedger of a cache with one allocator, on a Pool.

    A sector is then nothing but some blocks of the one allocator, so all of them are its from the
    beginning. Page p is block p + first: the engine's first sectors are for padding.
    """

    num_free_sectors = 0

    def __init__(self, counts: Counts, tell: Callable[[BaseException], None], num_sectors: int,
                 num_reserved_sectors: int):
        self.counts = counts
        self.tell = tell
        self.num_sectors = num_sectors
        self.num_reserved_sectors = num_reserved_sectors
        self.free_sectors: list[int] = []
        self.complete: dict[str, int] = {}  # full pages, by request
        self.block_to_hash: dict[int, int] = {}  # the engine's tables: not used, so empty
        self.hash_to_block: dict[int, int] = {}
        self.page_size = 0

    @_told
    def bind(self, allocator: Any) -> None:
        self.first = self.num_reserved_sectors * allocator.blocks_per_sector
        self.num_pages = self.num_sectors * allocator.blocks_per_sector
        self.page_size = allocator.tokens_per_page
        self._open()

    def _open(self) -> None:
        self.pool = Pool(self.num_pages, page_size=self.page_size)
        self.counts.pools.append(self.pool)

    def pages(self, blocks: list[int]) -> list[int]:
        return [block - self.first for block in blocks]

    def blocks(self, pages: list[int]) -> list[int]:
        return [page + self.first for page in pages]

    # What the engine calls on its pool.

    def reset(self) -> None:
        self.complete.clear()
        if self.page_size:
            self.counts.pools.remove(self.pool)
            self._open()

    def set_blocks_per_sector(self, index: int, blocks_per_sector: int) -> None:
        pass

    @_told
    def allocate_sector(self, index: int) -> None:
        refuse("the engine asks for a sector that no free block needs")

    def try_to_free_sectors(self) -> None:
        pass

    @_told
    def free_blocks(self, index: int, block_ids: list[int]) -> None:
        self.pool.free(self.pages(block_ids))

    @_told
    def get_free_blocks(self, index: int, num_blocks: int) -> list[int]:
        return self.blocks(self.pool.alloc(num_blocks))

    def count_free_blocks(self, index: int) -> int:
        counts = self.pool.counts()
        return counts.blank + counts.cached

    @_told
    def publish(self, table: list[int], first: int, tokens: list[int]) -> None:
        """Blocks of a request from the first-th on are full. Of equal ones a single copy stays."""
        end = first + len(tokens) // self.page_size
        behind = table[first - 1] - self.first if first else -1
        own = self.pages(table[first:end])
        self.pool.publish(tokens, own, behind=behind)
        for i, page in enumerate(own, first):
            if (twin := self.pool.twin(page)) >= 0:
                table[i] = twin + self.first
                self.pool.share([twin])
                self.release(page + self.first, no_cache=True)

    # What it calls on its ledger.

    @_told
    def acquire(self, block_id: int) -> None:
        self.pool.share([block_id - self.first])

    @_told
    def release(self, block_id: int, no_cache: bool = False) -> bool:
        """False: the page is where it belongs already."""
        page = [block_id - self.first]
        if no_cache and self.pool.owners(page[0]) == 1:
            self.pool.unkeep(page)
        self.pool.free(page)
        return False

    def evict_cached_blocks(self) -> list[int]:
        return []  # an allocation takes them one by one

    def register_new_hash(self, block_id: int, block_hash: int) -> None:
        """Called once the hook is undone: a cache that outlives it shares no more prefixes."""


def _after_init(original: Callable[..., None]) -> Callable[..., None]:
    def _after_cache_tensor_init(
        self: Any, non_trash_bytes: int, bytes_per_sector: int, cache_tensor: Tensor, pool: Any,
    ) -> None:
        original(self, non_trash_bytes, bytes_per_sector, cache_tensor, pool)
        if isinstance(pool, Pages):
            pool.bind(self)
            self.ledger = pool

    return _after_cache_tensor_init


def _free_blocks(original: Callable[..., None]) -> Callable[..., None]:
    def free_blocks(self: Any, request_id: str, no_cache: bool = False) -> None:
        """The last page first, so that prefixes outlive what followed them."""
        if isinstance(self.pool, Pages):
            self.block_table.get(request_id, []).reverse()
            self.pool.complete.pop(request_id, None)
        original(self, request_id, no_cache)

    return free_blocks


def _match(original: Callable[..., Any]) -> Callable[..., Any]:
    def match_prefix_blocks(self: Any, prompt_ids: list[int]) -> Any:
        if not isinstance(self.pool, Pages):
            return original(self, prompt_ids)
        return self.pool.blocks(self.pool.pool.find(prompt_ids))

    return match_prefix_blocks


def _mark(original: Callable[..., None]) -> Callable[..., None]:
    def mark_complete_blocks(
        self: Any, request_id: str, token_ids: list[int], new_new_blocks: int,
    ) -> None:
        pages = self.pool
        if not isinstance(pages, Pages):
            original(self, request_id, token_ids, new_new_blocks)
            return
        table, size = self.block_table[request_id], self.tokens_per_page
        first = pages.complete.get(request_id, 0)
        done = min(first + new_new_blocks, len(table), len(token_ids) // size)
        pages.complete[request_id] = done
        pages.publish(table, first, token_ids[first * size:done * size])

    return mark_complete_blocks


def _acquire(original: Callable[..., None]) -> Callable[..., None]:
    def acquire_prefix_blocks(
        self: Any, request_id: str, prefix_len: int, block_ids: list[int],
    ) -> None:
        original(self, request_id, prefix_len, block_ids)
        if isinstance(self.pool, Pages):
            self.pool.complete[request_id] = len(self.block_table[request_id])

    return acquire_prefix_blocks


def _fork(original: Callable[..., Any]) -> Callable[..., Any]:
    def fork_blocks(
        self: Any, source_request_id: str, dest_request_id: str, past_length: int,
    ) -> Any:
        copied = original(self, source_request_id, dest_request_id, past_length)
        if isinstance(self.pool, Pages):  # what is shared and not copied is full
            shared = len(self.block_table[dest_request_id]) - len(copied[0])
            self.pool.complete[dest_request_id] = shared
        return copied

    return fork_blocks


WRAPPERS = {"_after_cache_tensor_init": _after_init, "free_blocks": _free_blocks,
             "match_prefix_blocks": _match, "mark_complete_blocks": _mark,
             "acquire_prefix_blocks": _acquire, "fork_blocks": _fork}
