"""Who owns which page of a cache, and which pages hold the beginning of a prompt.

A thin layer over pagedkv/pool.h and pagedkv/prefix.h: a pool of pages with one index of prefixes.
It knows page numbers and tokens, nothing of the cache's bytes.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from . import _core

__all__ = ["Counts", "Pool"]


@dataclass(frozen=True)
class Counts:
    """Pages by state, blank + cached + used in all; and what the index did.

    Attributes:
        shared: used ones with two owners or more.
        evictions: cached pages that an allocation took.
        find_tokens, hit_tokens: tokens of the prompts that were looked up, and those found.
    """

    blank: int
    cached: int
    used: int
    shared: int
    evictions: int
    find_tokens: int
    hit_tokens: int


class Pool:
    """Pages 0 .. num_pages - 1, each used (so many owners), cached (found again until
    an allocation takes it, the one that was freed first before all others) or blank.

    Calls on one pool must not run at the same time.

    >>> pool = Pool(8, page_size=4)
    >>> pages = pool.alloc(2)
    >>> pool.publish([1, 2, 3, 4, 5, 6, 7, 8], pages)
    >>> pool.free(pages[::-1])
    >>> pool.find([1, 2, 3, 4, 9, 9]) == pages[:1], pool.counts().cached
    (True, 2)
    """

    def __init__(self, num_pages: int, *, page_size: int) -> None:
        """All pages are blank. InvalidError for numbers out of range."""
        # Nobody outside can choose tokens whose hashes collide.
        self._pool = _core.pool_open(num_pages, page_size, secrets.randbits(64))
        self.num_pages = num_pages
        self.page_size = page_size

    def alloc(self, n: int, *, after: int = -1, room: int = 0) -> list[int]:
        """n pages with one owner each, in the order in which a sequence should use them.

        Args:
            after: the last page that the sequence has, or -1 for a new one; those right behind
                it are taken first.
            room: pages that it may grow by later: a place with so many behind is preferred.

        Raises:
            NoPagesError: blank and cached pages together are fewer; nothing has changed.
        """
        return _core.pool_alloc(self._pool, n, after, room)

    def share(self, pages: Sequence[int]) -> None:
        """One owner more for each. StateError for a blank one; then nothing has changed."""
        _core.pool_share(self._pool, pages)

    def free(self, pages: Sequence[int]) -> None:
        """One owner less for each, in order: name the last ones first, to have a sequence's
        first pages outlive them. StateError for a page without an owner; then nothing has changed.
        """
        _core.pool_free(self._pool, pages)

    def unkeep(self, pages: Sequence[int]) -> None:
        """These used pages are not found any more, and blank when their last owner leaves."""
        _core.pool_unkeep(self._pool, pages)

    def owners(self, page: int) -> int:
        """How many owners a page has; -1 for a number that is no page."""
        return _core.pool_owners(self._pool, page)

    def find(self, tokens: Sequence[int], *, salt: int = 0) -> list[int]:
        """Pages that hold the beginning of a prompt, all but its last token at most.

        They are not the caller's yet: share them before anything is allocated. Prompts with
        different salts share nothing.
        """
        return _core.pool_find(self._pool, salt, tokens)

    def publish(
        self, tokens: Sequence[int], pages: Sequence[int], *, salt: int = 0, behind: int = -1,
    ) -> None:
        """From now on these pages can be found: full and written, one behind the other.

        Those that were published with this content before stay so.

        Args:
            tokens: of these pages.
            behind: the page in front of them, published already; -1: they are a sequence's first.

        Raises:
            StateError: a page without an owner, or published with other tokens; ``index`` names it.
                Or ``behind`` is not published.
            InvalidError: tokens are not page_size for each page.
            RangeError: a number that is no page.
        """
        _core.pool_publish(self._pool, salt, behind, tokens, pages)

    def twin(self, page: int) -> int:
        """Another page with the same content, or -1: of requests that ran side by side.

        If this one was published last, the one that was published first of those that are left.
        To have one copy only: share the twin, :meth:`unkeep` and free this one.

        Raises:
            RangeError: a number that is no page.
        """
        return _core.pool_twin(self._pool, page)

    def counts(self) -> Counts:
        return Counts(*_core.pool_counts(self._pool))

    def check(self) -> None:
        """Proves that the books agree, by a pass over all pages; for tests."""
        _core.pool_check(self._pool)
