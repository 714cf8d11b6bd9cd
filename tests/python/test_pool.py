"""pagedkv.pool: the binding. What a pool and its index decide is tested in C."""

from __future__ import annotations

import doctest
import random
import resource

import pytest

import pagedkv
import pagedkv.pool
from pagedkv.pool import Counts, Pool


def test_docstring() -> None:
    assert doctest.testmod(pagedkv.pool).attempted > 0
    assert doctest.testmod(pagedkv.pool).failed == 0


def test_alloc_takes_pages_that_follow() -> None:
    pool = Pool(16, page_size=4)
    first = pool.alloc(3)
    assert first == [first[0], first[0] + 1, first[0] + 2]
    other = pool.alloc(2, room=4)
    assert pool.alloc(2, after=first[-1]) == [first[-1] + 1, first[-1] + 2]
    assert set(other).isdisjoint(first)
    assert pool.counts() == Counts(blank=9, cached=0, used=7, shared=0, evictions=0,
                                   find_tokens=0, hit_tokens=0)


def test_owners() -> None:
    pool = Pool(4, page_size=4)
    page, = pool.alloc(1)
    pool.share([page, page])
    assert (pool.owners(page), pool.owners(4), pool.counts().shared) == (3, -1, 1)
    pool.free([page, page, page])
    assert (pool.owners(page), pool.counts().blank) == (0, 4)


def test_prefixes_against_a_dictionary() -> None:
    """Random prompts of few tokens, so that prefixes meet; every hit holds what it says."""
    rng, pool, size = random.Random(3), Pool(24, page_size=2), 2
    content: dict[int, tuple[int, ...]] = {}
    running: list[list[int]] = []
    hits = 0
    for _ in range(400):
        if running and (len(running) > 3 or rng.random() < 0.4):
            pool.free(running.pop(rng.randrange(len(running)))[::-1])
        tokens = [rng.randrange(3) for _ in range(rng.randrange(1, 12))]
        found = pool.find(tokens)
        assert len(found) <= (len(tokens) - 1) // size
        for i, page in enumerate(found):
            assert content[page] == tuple(tokens[:(i + 1) * size])
        hits += len(found)
        pool.share(found)
        full = len(tokens) // size
        try:
            pages = found + pool.alloc(full - len(found))
        except pagedkv.NoPagesError:
            pool.free(found)
            continue
        for i in range(len(found), full):
            content[pages[i]] = tuple(tokens[:(i + 1) * size])
        pool.publish(tokens[:full * size], pages)
        running.append(pages)
        pool.check()
    counts = pool.counts()
    assert hits > 100 and counts.evictions > 50
    assert counts.hit_tokens == hits * size


def test_salts_and_unkeep() -> None:
    pool = Pool(4, page_size=2)
    page, = pool.alloc(1)
    pool.publish([1, 2], [page], salt=7)
    assert pool.find([1, 2, 3], salt=7) == [page]
    assert pool.find([1, 2, 3]) == pool.find([1, 2], salt=7) == []
    pool.unkeep([page])
    assert pool.find([1, 2, 3], salt=7) == []
    pool.free([page])
    assert pool.counts().cached == 0


def test_pages_behind_others_and_twins() -> None:
    pool = Pool(6, page_size=2)
    a, b = pool.alloc(2), pool.alloc(2)
    pool.publish([1, 2], a[:1])
    pool.publish([3, 4], a[1:], behind=a[0])
    assert pool.find([1, 2, 3, 4, 5]) == a
    pool.publish([1, 2, 3, 4], b)
    assert [pool.twin(page) for page in b] == a
    pool.share(a)
    pool.unkeep(b)
    pool.free(b)
    assert (pool.counts().cached, pool.counts().shared) == (0, 2)
    assert [pool.twin(page) for page in (*a, *b)] == [-1] * 4
    with pytest.raises(pagedkv.StateError):
        pool.publish([5, 6], pool.alloc(1), behind=b[0])
    for wrong in (lambda: pool.twin(6), lambda: pool.twin(-1),
                  lambda: pool.publish([1, 2], a[:1], behind=6)):
        with pytest.raises(pagedkv.RangeError):
            wrong()
    pool.check()


def test_errors_change_nothing() -> None:
    pool = Pool(4, page_size=2)
    pages = pool.alloc(3)
    before = pool.counts()
    with pytest.raises(pagedkv.NoPagesError) as no_pages:
        pool.alloc(2)
    assert isinstance(no_pages.value, MemoryError)
    assert (no_pages.value.value, no_pages.value.limit) == (1, 2)
    blank = ({0, 1, 2, 3} - set(pages)).pop()
    with pytest.raises(pagedkv.StateError) as state:
        pool.free([pages[0], blank])
    assert isinstance(state.value, RuntimeError) and state.value.index == 1
    for wrong in (lambda: pool.share([blank]), lambda: pool.publish([1, 2], [blank])):
        with pytest.raises(pagedkv.StateError):
            wrong()
    with pytest.raises(pagedkv.RangeError):
        pool.share([4])
    for invalid in (lambda: pool.alloc(-1), lambda: pool.publish([1], [pages[0]]),
                    lambda: pool.publish([1, 2, 3, 4], [pages[0]]), lambda: pool.free([2**31]),
                    lambda: Pool(0, page_size=2), lambda: Pool(4, page_size=0)):
        with pytest.raises(pagedkv.InvalidError):
            invalid()
    for not_numbers in (["a"], [1.5], [None]):
        with pytest.raises(TypeError):
            pool.find(not_numbers)  # type: ignore[arg-type]
    with pytest.raises(OverflowError):
        pool.free([2**80])
    assert pool.counts() == before
    pool.check()


def test_a_capsule_of_another_kind() -> None:
    import datetime

    with pytest.raises(ValueError, match="PyCapsule"):
        pagedkv._core.pool_counts(datetime.datetime_CAPI)
    with pytest.raises(ValueError, match="PyCapsule"):
        pagedkv._core.pool_check(3)


def test_memory_is_given_back() -> None:
    """The process does not grow by pools that are gone."""
    def peak_kib() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def use() -> None:
        for _ in range(8):
            Pool(1 << 15, page_size=64).alloc(1 << 15)  # some 10 MiB of books, all touched

    use()
    before = peak_kib()
    use()
    use()
    assert peak_kib() - before < 40 << 10
