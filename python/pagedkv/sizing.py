"""Upstream's sizing rules. Plain arithmetic; an argument outside its range: InvalidError."""

from __future__ import annotations

from . import _core
from ._errors import InvalidError


def token_buckets(min_tokens: int, max_tokens: int, gap_tokens: int = 0) -> list[int]:
    """The padded token counts that a runner compiles for.

    gap 0: min, 2*min, 4*min, ... until >= max. Else doubling up to the gap, then steps of it.
    min_tokens is a power of two.
    """
    return _core.buckets(1, min_tokens, max_tokens, gap_tokens)


def token_bucket(n_tokens: int, min_tokens: int, max_tokens: int, gap_tokens: int = 0) -> int:
    """The first of those buckets that is >= n_tokens."""
    return _core.token_bucket(n_tokens, min_tokens, max_tokens, gap_tokens)


def request_buckets(min_num_reqs: int, max_num_reqs: int) -> list[int]:
    """Padded request counts: min, 2*min, ..., with max_num_reqs as the last."""
    return _core.buckets(0, min_num_reqs, max_num_reqs, 0)


def padded_num_reqs(n_requests: int, limit: int) -> int:
    """min(limit, 8 if n <= 8 else the next power of two)."""
    return _core.padded_num_reqs(n_requests, limit)


def padded_num_slices(max_num_reqs: int, token_bucket: int, page_size: int) -> int:
    """N = min(2 * max_num_reqs + token_bucket // page_size, token_bucket)."""
    return _core.padded_num_slices(max_num_reqs, token_bucket, page_size)


def scratch_page_bytes(page_size: int, num_kv_heads: int, head_dim: int, dtype: str) -> int:
    """Bytes of one page in a TPU's scratch memory; dtype as on the command line ("bf16")."""
    number = _core.dtype_from_name(dtype)
    if number == 0:
        raise InvalidError(f"dtype: {dtype!r} is none")
    return _core.scratch_page_bytes(page_size, num_kv_heads, head_dim, number)


def num_slices_per_block(page_bytes: int, budget_bytes: int) -> int:
    """Copies in flight for a scratch budget: a power of two, 64 at most."""
    return _core.num_slices_per_block(page_bytes, budget_bytes)


def page_size(max_model_len: int) -> int:
    """Upstream's page size for a model length."""
    return _core.page_size(max_model_len)


def min_page_size(max_num_reqs: int, max_model_len: int) -> int:
    """The smallest page size with which the block table fits half of 1 MiB."""
    return _core.min_page_size(max_num_reqs, max_model_len)


def max_num_reqs(max_model_len: int, page_size: int) -> int:
    """How many requests' block tables fit half of 1 MiB."""
    return _core.max_num_reqs(max_model_len, page_size)
