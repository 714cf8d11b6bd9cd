"""A decode loop under jit: the cache is donated, the count is traced.

    pip install '.[jax]' && python examples/jax_update.py
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import pagedkv
import pagedkv.jax

PAGES, PAGE_SIZE, HEADS, DIM = 256, 16, 8, 128


@partial(jax.jit, donate_argnums=0)
def step(cache: jax.Array, key: jax.Array, slices: jax.Array, n: jax.Array) -> jax.Array:
    new_kv = jax.random.normal(key, (40, 2 * HEADS, DIM), jnp.bfloat16)
    return pagedkv.jax.kv_cache_update(new_kv, slices, cache, n, page_size=PAGE_SIZE)


cache = jnp.zeros((PAGES * PAGE_SIZE, 2 * HEADS, DIM), jnp.bfloat16)
buffer = cache.unsafe_buffer_pointer()
computed = np.array([0, 10], np.int32)
pages = [[100, 101, 102], [200, 201, 202, 203]]
scheduled = np.array([10, 30], np.int32)
for i in range(4):
    plan = pagedkv.plan(computed, scheduled, pages, page_size=PAGE_SIZE, capacity=8)
    cache = step(cache, jax.random.key(i), plan.slices, np.array([plan.num_slices], np.int32))
    computed, scheduled = computed + scheduled, np.ones(2, np.int32)
    print(f"step {i}: {plan.num_tokens} tokens in {plan.num_slices} slices")

written = int(jnp.sum(jnp.any(cache != 0, axis=(1, 2))))
print(f"{written} slots written, {step._cache_size()} program compiled, the cache",
      "stayed where it was" if cache.unsafe_buffer_pointer() == buffer else "moved")
