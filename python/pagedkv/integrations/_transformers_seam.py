"""What transformers must look like for the hook: names, signatures, and the one refusal."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any, NoReturn

import transformers

from .._errors import UnsupportedError
from ..pool import Pool

_WRITTEN_FOR = "5.24"
_UPDATE = ["self", "key_states", "value_states", "layer_idx", "read_index", "write_index"]
_CACHE_UPDATE = ["self", "key_states", "value_states", "layer_idx", "kwargs"]
_TABLE = ["self", "layer_idx"]
_POOL = {
    "__init__": ["self", "num_sectors", "num_allocators", "num_reserved_sectors"],
    "set_blocks_per_sector": ["self", "index", "blocks_per_sector"],
    "allocate_sector": ["self", "index"],
    "num_free_sectors": ["self"],
    "try_to_free_sectors": ["self"],
    "free_blocks": ["self", "index", "block_ids"],
    "get_free_blocks": ["self", "index", "num_blocks"],
    "count_free_blocks": ["self", "index"],
}
_BASE = {
    "_after_cache_tensor_init": ["self", "non_trash_bytes", "bytes_per_sector", "cache_tensor",
                                 "pool"],
    "free_blocks": ["self", "request_id", "no_cache"],
    "match_prefix_blocks": ["self", "prompt_ids"],
    "mark_complete_blocks": ["self", "request_id", "token_ids", "new_new_blocks"],
    "acquire_prefix_blocks": ["self", "request_id", "prefix_len", "block_ids"],
    "fork_blocks": ["self", "source_request_id", "dest_request_id", "past_length"],
}
_ALLOCATORS = ("FullAttentionCacheAllocator", "SlidingAttentionCacheAllocator")


@dataclass
class Counts:
    """What the hook did since it was set.

    Attributes:
        plans: one for each group of layers and step.
        writes: one for each layer and step, K and V in one.
        tokens: rows of all writes, K and V counted once; the engine's padding included.
        slices: of all plans, padding left out; 0 on CUDA devices, which do not tell.
        write_calls_of_engine: the engine's own writes that were replaced, two for each of writes.
        pools: with pool=True, the pools of the caches that were made.
    """

    plans: int = 0
    writes: int = 0
    tokens: int = 0
    slices: int = 0
    write_calls_of_engine: int = 0
    pools: list[Pool] = field(default_factory=list)


def refuse(what: str) -> NoReturn:
    raise UnsupportedError(
        f"transformers {transformers.__version__}: {what}; pagedkv.integrations.transformers was "
        f"written for {_WRITTEN_FOR} and does not fall back to the engine's own write")


def _engine() -> Any:
    try:
        from transformers.generation.continuous_batching import cache_allocators
    except ImportError:
        refuse("has no continuous_batching.cache_allocators")
    return cache_allocators


def _class(module: Any, name: str, methods: dict[str, list[str]]) -> Any:
    """A class of the engine's, if it has these methods of its own, with these parameters."""
    found = getattr(module, name, None)
    if found is None:
        refuse(f"has no {name}")
    for method, expected in methods.items():
        function = vars(found).get(method)
        if function is None:
            refuse(f"{name} has no method {method} of its own")
        parameters = list(inspect.signature(getattr(function, "fget", function)).parameters)
        if parameters != expected:
            refuse(f"{name}.{method} takes {parameters}, not {expected}")
    return found


def write_seam() -> tuple[type, list[type]]:
    """The engine's cache and its allocators' classes, if they look as they must."""
    methods = {"update": _UPDATE, "get_cache_for_block_table": _TABLE}
    allocators = [_class(_engine(), name, methods) for name in _ALLOCATORS]
    from transformers.generation.continuous_batching import cache

    return _class(cache, "PagedAttentionCache", {"update": _CACHE_UPDATE}), allocators


def pool_seam() -> tuple[Any, Any]:
    """The module that makes a cache, and the base class of the allocators."""
    allocators = _engine()
    base = _class(allocators, "CacheAllocator", _BASE)
    engine_pool = _class(allocators, "CachePool", _POOL)
    extra = {n for n in vars(engine_pool) if not n.startswith("_")} - set(_POOL) - {"reset"}
    if extra:
        refuse(f"CachePool has more methods than were known: {sorted(extra)}")
    from transformers.generation.continuous_batching import cache

    if getattr(cache, "CachePool", None) is not engine_pool:
        refuse("continuous_batching.cache does not make a CachePool")
    return cache, base
