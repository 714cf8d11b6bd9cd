"""transformers' continuous batching with and without pagedkv: the same tokens, bit for bit.

Small models with seeded weights; nothing is downloaded. Requests are queued before the engine's
thread starts, so both runs form the same steps, and the floats of both can be compared, not just
the tokens.
"""

from __future__ import annotations

import gc
import random
import sys
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching import cache_allocators

import pagedkv
from pagedkv.integrations import transformers as hook

VOCABULARY, LAYERS, PAGE, BUDGET, WINDOW = 256, 4, 8, 48, 20
SHAPE = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96,
         "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2,
         "max_position_embeddings": 1024, "initializer_range": 0.3}
WINDOWS = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2}
# What is built, and its groups of layers. The wide weights keep greedy tokens from repeating.
MODELS: dict[str, tuple[Any, int]] = {
    "llama": (lambda: (transformers.LlamaForCausalLM, transformers.LlamaConfig(**SHAPE)), 1),
    "llama-window": (lambda: (transformers.MistralForCausalLM, transformers.MistralConfig(
        **SHAPE, sliding_window=WINDOW)), 1),
    "qwen3": (lambda: (transformers.Qwen3ForCausalLM, transformers.Qwen3Config(
        **SHAPE, head_dim=24)), 1),
    "qwen3-window": (lambda: (transformers.Qwen3ForCausalLM, transformers.Qwen3Config(
        **SHAPE, head_dim=24, **WINDOWS)), 2),
    "qwen2-window": (lambda: (transformers.Qwen2ForCausalLM, transformers.Qwen2Config(
        **SHAPE, **WINDOWS)), 2),
}
_models: dict[tuple[str, str, torch.dtype, str], Any] = {}


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    """One thread, and no search of everything imported in the engine's own gc.collect()."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
    torch.set_num_threads(threads)
    _models.clear()


def model(
    name: str, attention: str = "sdpa", dtype: torch.dtype = torch.float32, device: str = "cpu",
) -> Any:
    key = name, attention, dtype, device
    if key not in _models:
        torch.manual_seed(0)
        family, config = MODELS[name][0]()
        made = family._from_config(config, attn_implementation=attention)
        _models[key] = made.eval().to(device, dtype)
    return _models[key]


def prompts(seed: int, *lengths: int, prefix: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    start = [rng.randrange(VOCABULARY) for _ in range(prefix)]
    return [start + [rng.randrange(VOCABULARY) for _ in range(n)] for n in lengths]


# Longer than a step, shorter than a page, at its end, and some that the window passes.
LENGTHS = (3, PAGE, 2 * BUDGET + 5, 31, 1, 70, PAGE + 1, 16)


def generate(
    made: Any, requests: list[list[int]], tokens: int = 12, *, sequences: int = 1, **config: Any,
) -> SimpleNamespace:
    """Tokens and log probabilities of each request, the steps, and the cache's bytes."""
    manager = made.init_continuous_batching(
        generation_config=GenerationConfig(
            max_new_tokens=tokens, eos_token_id=-1, num_return_sequences=sequences,
            do_sample=sequences > 1),  # the engine forks only what it samples: from a seed here
        continuous_batching_config=ContinuousBatchingConfig(
            **{"page_size": PAGE, "num_blocks": 160, "max_batch_tokens": BUDGET,
               "return_logprobs": True, "seed": 3, **config}))
    ids = manager.add_requests(requests)
    manager.start()
    try:
        found = {}
        while len(found) < len(ids) * sequences and (manager.is_running() or found):
            result = manager.get_result(timeout=0.1)
            if result is not None and result.is_finished():
                found[result.request_id] = result
            elif result is None and not manager.is_running():
                break
        processor = manager.batch_processor
        steps = manager.current_batch if processor is not None else 0
        kept = padding = b""
        if processor is not None:
            # Two sectors at the front are what padding is read from and what it is put in.
            sector = processor.cache.bytes_per_sector
            memory = processor.cache.cache_tensor.cpu().numpy()
            kept, padding = memory[2 * sector:].tobytes(), memory[:2 * sector].tobytes()
    finally:
        manager.stop(block=True)
        manager.destroy()
    names = sorted(found)
    return SimpleNamespace(
        tokens={name: list(found[name].generated_tokens) for name in names},
        logprobs={name: list(found[name].logprobs) for name in names},
        errors=[found[name].error for name in names], steps=steps, cache=kept,
        padding=padding)


def compare(made: Any, groups: int, requests: list[list[int]], **options: Any) -> Any:
    """Both runs; what must hold for every model and setting. Returns the counts."""
    want = generate(made, requests, **options)
    with hook.patched() as counts:
        got = generate(made, requests, **options)
    assert want.errors == got.errors == [None] * len(want.errors)
    assert len(want.tokens) == len(requests) * options.get("sequences", 1)
    assert got.tokens == want.tokens
    assert got.logprobs == want.logprobs
    assert got.steps == want.steps
    assert got.cache == want.cache
    assert not any(got.padding)  # planned as nothing, where the engine writes it over and over
    assert counts.plans == groups * want.steps
    assert counts.writes == LAYERS * want.steps
    assert counts.write_calls_of_engine == 2 * counts.writes
    return counts


@pytest.mark.parametrize("name, attention, dtype", [
    *((name, "sdpa", torch.float32) for name in MODELS),
    *((name, attention, torch.bfloat16) for name in ("llama", "qwen3-window")
      for attention in ("sdpa", "paged|eager")),
    ("llama-window", "sdpa", torch.bfloat16), ("qwen3-window", "paged|eager", torch.float32)],
    ids=str)
def test_same_tokens(name: str, attention: str, dtype: torch.dtype) -> None:
    counts = compare(model(name, attention, dtype), MODELS[name][1], prompts(1, *LENGTHS))
    rows = sum(LENGTHS) + len(LENGTHS) * 11  # the last token's K and V are never computed
    assert counts.tokens == LAYERS * rows
    assert counts.plans < counts.slices


def test_the_comparison_sees_a_lost_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """One layer's writes left out: the tokens, floats and bytes must tell."""
    real = hook.Group.write

    def lossy(self: Any, layer: Any, key: torch.Tensor, value: torch.Tensor) -> None:
        if layer is not self.layers[LAYERS - 1].taker:
            real(self, layer, key, value)

    made, requests = model("llama"), prompts(1, *LENGTHS)
    want = generate(made, requests)
    monkeypatch.setattr(hook.Group, "write", lossy)
    with hook.patched():
        got = generate(made, requests)
    assert got.steps == want.steps
    assert got.tokens != want.tokens
    assert got.logprobs != want.logprobs
    assert got.cache != want.cache


def test_many_requests_and_few_pages() -> None:
    """More requests than run at a time, in a cache that makes them wait."""
    rng = random.Random(5)
    requests = prompts(3, *(rng.randrange(1, 60) for _ in range(40)))
    counts = compare(model("qwen3"), 1, requests, tokens=9, num_blocks=40,
                     max_requests_per_batch=12)
    assert counts.plans > 40


def test_large_steps() -> None:
    """More tokens than the plan's arrays begin with, and then more again."""
    compare(model("qwen3-window"), 2, prompts(6, 300, 700), tokens=3, max_batch_tokens=640)


def test_a_cache_too_small_for_all_requests() -> None:
    """Requests are thrown out and computed again: pages change their owner."""
    compare(model("llama"), 1, prompts(4, 30, 30, 30, 30), tokens=40, num_blocks=22,
            allow_block_sharing=False)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_shared_prefixes(name: str) -> None:
    requests = prompts(7, 5, 9, 20, 3, 14, 1, prefix=5 * PAGE + 3)
    counts = compare(model(name), 1, requests)
    computed = sum(len(r) + 11 for r in requests)
    assert counts.tokens < LAYERS * (computed - 3 * 5 * PAGE), "no prefix was shared"
    alone = compare(model(name), 1, requests, allow_block_sharing=False)
    assert alone.tokens == LAYERS * computed


def test_forked_requests() -> None:
    """Several sequences of one prompt: the engine copies the page that is not full."""
    compare(model("llama"), 1, prompts(8, 13, 30), sequences=3)


@pytest.mark.parametrize("name", ["llama", "qwen3-window"])
def test_generate_batch(name: str) -> None:
    """As users call it. Steps may form differently there, so only tokens are compared."""
    made, requests = model(name), prompts(2, *LENGTHS)

    def run() -> list[list[int]]:
        outputs = made.generate_batch(
            requests, generation_config=GenerationConfig(max_new_tokens=10, do_sample=False,
                                                         eos_token_id=-1),
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=PAGE, num_blocks=160, max_batch_tokens=BUDGET))
        return [output.generated_tokens for output in outputs.values()]

    want = run()
    with hook.patched() as counts:
        got = run()
    assert len(want) == len(requests) and got == want
    assert counts.writes == LAYERS * counts.plans // MODELS[name][1] > 0


def test_a_cache_that_exists_already() -> None:
    """The hook is set and undone between two runs over one cache, which the engine keeps."""
    made, requests = model("llama"), prompts(9, 20, 40)
    options = GenerationConfig(max_new_tokens=8, do_sample=False, eos_token_id=-1)
    config = ContinuousBatchingConfig(page_size=PAGE, num_blocks=64, max_batch_tokens=BUDGET)

    def run() -> list[list[int]]:
        outputs = made.generate_batch(requests, options, config, persistent_manager=True)
        return [output.generated_tokens for output in outputs.values()]

    try:
        want = run()
        with hook.patched() as counts:
            assert run() == want
        written = counts.writes
        assert written > 0
        assert run() == want
        assert counts.writes == written
    finally:
        made.destroy_cached_continuous_batching_manager()


# ---- pages from the pool ------------------------------------------------------------------------


def compare_pool(made: Any, requests: list[list[int]], **options: Any) -> Any:
    """The engine, the hook, and the hook with the pool. Returns the counts of both hooks."""
    want = generate(made, requests, **options)
    with hook.patched() as engine:
        generate(made, requests, **options)
    with hook.patched(pool=True) as counts:
        got = generate(made, requests, **options)
    assert want.errors == got.errors == [None] * len(want.errors)
    assert got.tokens == want.tokens
    assert counts.writes == LAYERS * got.steps
    assert len(counts.pools) == 1
    counts.pools[0].check()
    pages = counts.pools[0].counts()
    assert pages.used == 0 and pages.blank + pages.cached == counts.pools[0].num_pages
    if pages.evictions == 0:  # else requests may wait for other steps than the engine's
        assert (got.steps, got.logprobs) == (want.steps, want.logprobs)
        assert counts.tokens == engine.tokens  # as much was shared
    return engine, counts


@pytest.mark.parametrize("name", ["llama", "qwen3", "llama-window"])
def test_pool_same_tokens(name: str) -> None:
    _, counts = compare_pool(model(name), prompts(1, *LENGTHS))
    assert (counts.pools[0].counts().cached > 0) == (name != "llama-window")


def test_pool_shares_prefixes() -> None:
    requests = prompts(7, 5, 9, 20, 3, 14, 1, prefix=5 * PAGE + 3)
    _, counts = compare_pool(model("qwen3"), requests)
    assert counts.tokens < LAYERS * (sum(len(r) + 11 for r in requests) - 3 * 5 * PAGE)
    assert counts.pools[0].counts().hit_tokens >= 3 * 5 * PAGE
    _, alone = compare_pool(model("qwen3"), requests, allow_block_sharing=False)
    assert alone.pools[0].counts().find_tokens == 0


@pytest.mark.parametrize("sequences", [1, 3])
def test_pool_publishes_what_is_written(monkeypatch: pytest.MonkeyPatch, sequences: int) -> None:
    """After each step all full pages can be found, and none that is not full."""
    from transformers.generation.continuous_batching import cache
    from transformers.generation.continuous_batching.requests import RequestStatus

    original = cache.PagedAttentionCache.mark_complete_blocks
    wrong, seen = [], 0

    def mark(self: Any, state: Any, complete_blocks: dict[str, int]) -> None:
        nonlocal seen
        original(self, state, complete_blocks)
        if not complete_blocks or state.status == RequestStatus.FINISHED:
            return  # the engine tells no more of one that has finished
        for allocator in self.cache_allocators.values():
            full = state.position_offset // PAGE
            pages, tokens = allocator.pool, state.initial_tokens + state.generated_tokens
            found = pages.pool.find([*tokens[:full * PAGE], 0])
            more = pages.pool.find([*tokens[:(full + 1) * PAGE], 0])
            seen += 1
            if not len(found) == len(more) == full == pages.complete[state.request_id]:
                wrong.append((state.request_id, full, len(found), len(more)))

    monkeypatch.setattr(cache.PagedAttentionCache, "mark_complete_blocks", mark)
    with hook.patched(pool=True):
        got = generate(model("llama"), prompts(7, 5, 90, 20, 3, prefix=5 * PAGE + 3), tokens=20,
                       sequences=sequences)
    assert got.errors == [None] * 4 * sequences
    assert seen > 12 and wrong == []


def test_pool_keeps_one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal prompts side by side: as few blocks as with the engine's own pages, step by step."""
    from transformers.generation.continuous_batching import cache

    original = cache.PagedAttentionCache.mark_complete_blocks
    blocks: list[int] = []

    def mark(self: Any, *arguments: Any) -> None:
        original(self, *arguments)
        for allocator in self.cache_allocators.values():
            blocks.append(len({block for table in allocator.block_table.values()
                               for block in table}))

    monkeypatch.setattr(cache.PagedAttentionCache, "mark_complete_blocks", mark)
    same, = prompts(12, 5 * PAGE)
    requests, options = [same] * 6 + prompts(13, 20, 9), {"max_batch_tokens": 400}
    want = generate(model("llama"), requests, **options)
    alone = blocks.copy()
    blocks.clear()
    with hook.patched(pool=True) as counts:
        got = generate(model("llama"), requests, **options)
    assert (got.tokens, got.steps) == (want.tokens, want.steps)
    assert blocks == alone and min(blocks[:6]) < max(blocks[:6]) - 15
    counts.pools[0].check()


def test_pool_frees_the_end_first() -> None:
    """What is evicted first is what a prefix is needed least for: its last page."""
    made, (request,) = model("llama"), prompts(11, 6 * PAGE)
    with hook.patched(pool=True) as counts:
        generate(made, [request], tokens=2)
        pool, = counts.pools
        assert len(pool.find([*request, 0])) == 6
        pool.alloc(pool.counts().blank + 2)
        assert len(pool.find([*request, 0])) == 4


def test_pool_forks() -> None:
    compare_pool(model("llama"), prompts(8, 13, 30), sequences=3)


def test_pool_evicts() -> None:
    """Too few pages for all: requests are thrown out, cached pages taken."""
    _, counts = compare_pool(model("llama"), prompts(4, 30, 30, 30, 30), tokens=40, num_blocks=22)
    assert counts.pools[0].counts().evictions > 0


def test_pool_across_runs_and_after_the_hook() -> None:
    """A second run finds the pages of the first; a cache that outlives the hook goes on."""
    made, requests = model("llama"), prompts(9, 5 * PAGE, 40)
    options = GenerationConfig(max_new_tokens=8, do_sample=False, eos_token_id=-1)
    config = ContinuousBatchingConfig(page_size=PAGE, num_blocks=64, max_batch_tokens=BUDGET)

    def run() -> list[list[int]]:
        outputs = made.generate_batch(requests, options, config, persistent_manager=True)
        return [output.generated_tokens for output in outputs.values()]

    want = [list(t) for t in generate(made, requests, tokens=8).tokens.values()]
    try:
        with hook.patched(pool=True) as counts:
            assert run() == want
            assert counts.pools[0].counts().hit_tokens == 0
            assert run() == want
            assert counts.pools[0].counts().hit_tokens == 8 * PAGE  # 4 of each prompt's 5
        assert run() == want
        cache = made._cached_continuous_batching_manager.batch_processor.cache
        cache.reset()
        assert run() == want
        assert cache.pool.pool.counts().used == 0
        cache.pool.pool.check()
    finally:
        made.destroy_cached_continuous_batching_manager()


def test_pool_refuses_pages_of_two_sizes() -> None:
    with pytest.raises(pagedkv.UnsupportedError, match="2 kinds of layers"):
        with hook.patched(pool=True) as counts:
            got = generate(model("qwen3-window"), prompts(1, 20))
            assert not any(got.tokens.values()) and counts.writes == 0


@pytest.mark.parametrize("change, match", [
    (lambda m, pool, base: m.delattr(pool, "get_free_blocks"), "no method get_free_blocks"),
    (lambda m, pool, base: m.setattr(pool, "move_blocks", lambda self: None, raising=False),
     "more methods than were known: .'move_blocks'"),
    (lambda m, pool, base: m.setattr(pool, "free_blocks", lambda self, ids: None),
     "CachePool.free_blocks takes"),
    (lambda m, pool, base: m.delattr(base, "match_prefix_blocks"), "no method match_prefix_blocks"),
], ids=["missing", "more", "signature", "base"])
def test_pool_of_another_release(
    monkeypatch: pytest.MonkeyPatch, change: Any, match: str,
) -> None:
    change(monkeypatch, cache_allocators.CachePool,
           cache_allocators.cache_allocator.CacheAllocator)
    hook.check()
    with pytest.raises(pagedkv.UnsupportedError, match=match):
        hook.check(pool=True)
    before = methods()
    with pytest.raises(pagedkv.UnsupportedError, match=match):
        hook.enable(pool=True)
    assert methods() == before


# ---- set and undone --------------------------------------------------------------------------


def methods() -> list[Any]:
    from transformers.generation.continuous_batching import cache

    base = vars(cache_allocators.CacheAllocator)
    return [cache.CachePool, *(base.get(name) for name in hook.WRAPPERS),
            cache.PagedAttentionCache.update,
            *(vars(allocator)[method] for allocator in (full(), sliding())
              for method in ("update", "get_cache_for_block_table"))]


def test_undone_afterwards() -> None:
    before = methods()
    with hook.patched(pool=True):
        assert not set(before) & set(methods())
    assert methods() == before
    with pytest.raises(KeyError), hook.patched(pool=True):
        raise KeyError("of the block")
    assert methods() == before
    hook.enable()
    assert not set(before[-4:]) & set(methods())
    hook.disable()
    assert methods() == before


def test_set_once() -> None:
    with hook.patched():
        with pytest.raises(pagedkv.InvalidError, match="set already"):
            hook.enable()
        counts = hook.Counts()
        assert counts.writes == 0
    with pytest.raises(pagedkv.InvalidError, match="not set"):
        hook.disable()


def test_two_caches_at_once() -> None:
    """Plans belong to a cache, not to the process."""
    first, second = model("llama"), model("qwen3")
    want = [generate(m, prompts(1, 20, 30)).tokens for m in (first, second)]
    config = ContinuousBatchingConfig(page_size=PAGE, num_blocks=64, max_batch_tokens=BUDGET)
    options = GenerationConfig(max_new_tokens=12, do_sample=False, eos_token_id=-1)
    with hook.patched():
        managers = [m.init_continuous_batching(options, config) for m in (first, second)]
        for manager in managers:
            manager.add_requests(prompts(1, 20, 30))
        for manager in managers:
            manager.start()
        found: list[dict[str, Any]] = [{}, {}]
        for manager, results in zip(managers, found, strict=True):
            while len(results) < 2 and manager.is_running():
                result = manager.get_result(timeout=0.1)
                if result is not None and result.is_finished():
                    results[result.request_id] = list(result.generated_tokens)
        for manager in managers:
            manager.stop(block=True)
            manager.destroy()
    assert [dict(sorted(results.items())) for results in found] == want


# ---- refused ---------------------------------------------------------------------------------


def refused(match: str, name: str = "llama", **options: Any) -> None:
    """Leaving the block raises what the engine's thread met, and no request got a token of it."""
    before = methods()
    got = None
    with pytest.raises(pagedkv.UnsupportedError, match=match) as caught, hook.patched() as counts:
        got = generate(model(name), prompts(1, 20, 30), **options)
    assert transformers.__version__ in str(caught.value)
    assert "does not fall back" in str(caught.value)
    assert got is not None and not any(got.tokens.values())
    assert all(error is not None for error in got.errors)
    assert counts.writes <= 1
    assert methods() == before


def full() -> Any:
    return cache_allocators.FullAttentionCacheAllocator


def sliding() -> Any:
    return cache_allocators.SlidingAttentionCacheAllocator


def test_another_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    original = full().update

    def update(self: Any, key_states: Any, value_states: Any, layer_idx: int, index: Any) -> Any:
        return original(self, key_states, value_states, layer_idx, index, index)

    monkeypatch.setattr(full(), "update", update)
    with pytest.raises(pagedkv.UnsupportedError, match=r"update takes .*'index'\], not"):
        hook.check()
    with pytest.raises(pagedkv.UnsupportedError, match="update takes"), hook.patched():
        pytest.fail("entered")
    assert full().update is update


def test_another_signature_of_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.generation.continuous_batching import cache

    monkeypatch.setattr(cache.PagedAttentionCache, "update", lambda self, layer_idx: None)
    with pytest.raises(pagedkv.UnsupportedError, match="PagedAttentionCache.update takes"):
        hook.check()


@pytest.mark.parametrize("name", ["FullAttentionCacheAllocator", "SlidingAttentionCacheAllocator"])
def test_no_such_class(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delattr(cache_allocators, name)
    with pytest.raises(pagedkv.UnsupportedError, match=f"has no {name}"):
        hook.check()


def test_no_such_module(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.generation import continuous_batching

    monkeypatch.setitem(sys.modules, cache_allocators.__name__, None)
    monkeypatch.delattr(continuous_batching, "cache_allocators")
    with pytest.raises(pagedkv.UnsupportedError, match="has no continuous_batching.cache_alloc"):
        hook.enable()


def test_methods_that_moved_to_the_base(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(sliding(), "update")
    with pytest.raises(pagedkv.UnsupportedError, match="no method update of its own"):
        hook.check()


def change_views(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    original = full().register_cache_tensor

    def register(self: Any, *arguments: Any) -> None:
        original(self, *arguments)
        self._kv_token_views = {i: change(self, *kv) for i, kv in self._kv_token_views.items()}

    monkeypatch.setattr(full(), "register_cache_tensor", register)


LAYOUTS = {
    "values first": lambda self, k, v: (v, k),
    "heads first": lambda self, k, v: (k.transpose(0, 1), v.transpose(0, 1)),
    "flat": lambda self, k, v: (k.flatten(1), v.flatten(1)),
    "planes of two caches": lambda self, k, v: (k, v.clone()),
    "other dtype": lambda self, k, v: (k, v.view(torch.int32)),
    "other rows": lambda self, k, v: (k[..., ::2], v[..., ::2]),
    "other pages": lambda self, k, v: (k, k[2 * self.tokens_per_page:]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_another_layout(monkeypatch: pytest.MonkeyPatch, layout: str) -> None:
    change_views(monkeypatch, LAYOUTS[layout])
    refused("layout is unknown")


def test_another_attribute(monkeypatch: pytest.MonkeyPatch) -> None:
    original = full().register_cache_tensor

    def register(self: Any, *arguments: Any) -> None:
        original(self, *arguments)
        self._views = self.__dict__.pop("_kv_token_views")

    monkeypatch.setattr(full(), "register_cache_tensor", register)
    refused("not as expected .*_kv_token_views")


def test_an_allocator_of_another_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.generation.continuous_batching import cache

    update = vars(full())["update"]

    class LatentCacheAllocator(full()):  # type: ignore[misc]
        def update(self, *arguments: Any) -> Any:
            return update(self, *arguments)

    monkeypatch.setitem(cache.ATTN_TYPE_TO_ALLOCATOR, "full_attention", LatentCacheAllocator)
    refused("cache of its own kind, LatentCacheAllocator")


def update_with(body: Any) -> Any:
    def update(self: Any, key_states: Any, value_states: Any, layer_idx: int, read_index: Any,
               write_index: Any) -> Any:
        body(*self._kv_token_views[layer_idx], write_index, key_states, value_states)
        return key_states, value_states

    return update


def set_items(k: Any, v: Any, index: Any, key: Any, value: Any) -> None:
    k[index] = key
    v[index] = value


def only_keys(k: Any, v: Any, index: Any, key: Any, value: Any) -> None:
    k.index_copy_(0, index, key)


def twice(k: Any, v: Any, index: Any, key: Any, value: Any) -> None:
    k.index_copy_(0, index, key)
    k.index_copy_(0, index, key)


def other_values(k: Any, v: Any, index: Any, key: Any, value: Any) -> None:
    k.index_copy_(0, index, key * 2)


def other_index(k: Any, v: Any, index: Any, key: Any, value: Any) -> None:
    k.index_copy_(0, index + 1, key)


def out_of_sight(k: Any, v: Any, index: Any, key: Any, value: Any) -> None:
    torch.Tensor.index_copy_(k, 0, index, key)
    torch.Tensor.index_copy_(v, 0, index, value)


@pytest.mark.parametrize("body, match", [
    (set_items, "by __setitem__"),
    (only_keys, "did not write K and V once"),
    (twice, "unexpected write of K"),
    (other_values, "changes the new K"),
    (other_index, "changes the new K"),
    (out_of_sight, "did not write K and V once"),
], ids=lambda value: getattr(value, "__name__", ""))
def test_another_way_to_write(monkeypatch: pytest.MonkeyPatch, body: Any, match: str) -> None:
    monkeypatch.setattr(full(), "update", update_with(body))
    refused(match)


def test_another_dtype_than_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    original = full().update

    def update(self: Any, key_states: Any, value_states: Any, layer_idx: int, read_index: Any,
               write_index: Any) -> Any:
        return original(self, key_states, value_states, layer_idx, read_index, write_index)

    made = model("llama", "sdpa", torch.bfloat16)
    from transformers.generation.continuous_batching import cache

    real = cache.PagedAttentionCache.__init__

    def half(self: Any, *arguments: Any, **named: Any) -> None:
        real(self, *arguments, **{**named, "dtype": torch.float16})

    monkeypatch.setattr(full(), "update", update)
    monkeypatch.setattr(cache.PagedAttentionCache, "__init__", half)
    with pytest.raises(pagedkv.UnsupportedError, match=r"bfloat16 for a cache of torch.float16"):
        with hook.patched():
            generate(made, prompts(1, 20))


def test_an_index_outside_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    original = full().get_write_indices

    def shifted(self: Any, request_id: str, past_length: int, query_length: int) -> list[int]:
        return [i + PAGE for i in original(self, request_id, past_length, query_length)]

    monkeypatch.setattr(full(), "get_write_indices", shifted)
    refused("outside the pages of its layer")


def small_cache(layers: int) -> Any:
    """An allocator of four blocks behind two reserved ones, its memory all zeros."""
    allocator = full()(0, transformers.LlamaConfig(**SHAPE), 2, torch.float32, PAGE,
                       list(range(layers)), True)
    block = allocator.bytes_per_block
    allocator.register_cache_tensor(block, 4 * block, torch.zeros(6 * block, dtype=torch.uint8),
                                    cache_allocators.CachePool(4, 1))
    return allocator


NOTHING = torch.zeros(0, dtype=torch.int64)


def test_the_exception_of_the_block_is_the_one_that_leaves() -> None:
    allocator, rows = small_cache(1), torch.ones(3, 2, 16)
    with pytest.raises(KeyboardInterrupt), hook.patched():
        with pytest.raises(AttributeError):
            allocator.update(rows, rows, 0, NOTHING, None)
        raise KeyboardInterrupt
    with pytest.raises(AttributeError), hook.patched(), pytest.raises(AttributeError):
        allocator.update(rows, rows, 0, NOTHING, None)


def test_what_the_pool_meets_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, n: int, **_: int) -> list[int]:
        raise RuntimeError("broken")

    monkeypatch.setattr(pagedkv.pool.Pool, "alloc", broken)
    with pytest.raises(RuntimeError, match="broken"), hook.patched(pool=True):
        got = generate(model("llama"), prompts(1, 20))
        assert not any(got.tokens.values()) and "broken" in got.errors[0]


def test_layers_out_of_order() -> None:
    """A layer of a step that was never planned."""
    allocator, rows = small_cache(2), torch.ones(3, 2, 16)
    with pytest.raises(pagedkv.UnsupportedError, match="layer 1 is not of the step"):
        with hook.patched():
            allocator.update(rows, rows, 1, NOTHING, torch.arange(3) + 8 * PAGE)
    assert not allocator.cache_tensor.any()


def test_a_plan_is_of_its_indices() -> None:
    """The same memory in another object is the planned one; other memory is not, nor is what a
    refused plan leaves behind."""
    allocator, rows = small_cache(2), torch.ones(3, 2, 16)
    index = torch.arange(3) + 2 * allocator.block_physical_stride
    with hook.patched() as counts:
        allocator.update(rows, rows, 0, NOTHING, index)
        allocator.update(rows, rows, 1, NOTHING, index[:])
        assert (counts.writes, counts.slices) == (2, 1)
    with pytest.raises(pagedkv.UnsupportedError, match="layer 1 is not"), hook.patched():
        allocator.update(rows, rows, 0, NOTHING, index)
        allocator.update(rows, rows, 1, NOTHING, index.clone())
    allocator.cache_tensor.zero_()
    with pytest.raises(pagedkv.UnsupportedError, match="outside the pages"), hook.patched():
        allocator.update(rows, rows, 0, NOTHING, index)
        before = allocator.cache_tensor.clone()
        index += PAGE
        for layer, match in ((0, "outside the pages"), (1, "layer 1 is not")):
            with pytest.raises(pagedkv.UnsupportedError, match=match):
                allocator.update(rows, rows, layer, NOTHING, index)
    assert torch.equal(allocator.cache_tensor, before) and before.any()


def test_nothing_keeps_a_cache_alive() -> None:
    """Not the hook that is still set, and no cycle that only the collector ends."""
    allocator, rows = small_cache(2), torch.ones(3, 2, 16)
    gc.disable()
    try:
        with hook.patched():
            allocator.update(rows, rows, 0, NOTHING, torch.arange(3) + 8 * PAGE)
            memory = weakref.ref(allocator.cache_tensor.untyped_storage())
            dead = weakref.ref(allocator)
            del allocator
            assert dead() is None and memory() is None
    finally:
        gc.enable()


def test_rows_are_let_go() -> None:
    """New K and V belong to the engine again when its update is over, or was refused."""
    allocator, rows = small_cache(1), torch.ones(3, 2, 16)
    index = torch.arange(3) + 2 * allocator.block_physical_stride
    before = sys.getrefcount(rows)
    with pytest.raises(pagedkv.UnsupportedError), hook.patched():
        allocator.update(rows, rows, 0, NOTHING, index)
        assert sys.getrefcount(rows) == before
        with pytest.raises(pagedkv.UnsupportedError):
            allocator.update(rows.double(), rows, 0, NOTHING, index)
        views = allocator.__dict__["_pagedkv_group"].layers[0].views
        with pytest.raises(pagedkv.UnsupportedError, match="unexpected write of V"):
            views[1].index_copy_(0, index, rows)
    assert not any("pagedkv" in name for name in vars(allocator))


def test_the_kernel_that_writes_itself() -> None:
    """With flash attention's decode path the cache is written inside the attention."""
    allocator = full()(0, transformers.LlamaConfig(**SHAPE), 2, torch.float32, PAGE, [0], True)
    with pytest.raises(pagedkv.UnsupportedError, match="max_blocks_per_request=0"):
        with hook.patched():
            allocator.get_cache_for_block_table(0)
