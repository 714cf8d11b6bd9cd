"""One step of two requests: plan it once, write it, read it back.

    pip install . && python examples/numpy_update.py
"""

import numpy as np

import pagedkv

PAGES, PAGE_SIZE, HEADS, DIM = 256, 16, 8, 128
cache = np.zeros((PAGES * PAGE_SIZE, 2 * HEADS, DIM), np.float16)
new_kv = np.random.default_rng(0).standard_normal((40, 2 * HEADS, DIM)).astype(np.float16)

# Request 0 starts with 10 tokens on page 100; request 1 has 10 and writes 30 more.
plan = pagedkv.plan([0, 10], [10, 30], [[100], [200, 201, 202]], page_size=PAGE_SIZE,
                    max_slice_tokens=0)
for slot, row, tokens in plan.slices.T[:plan.num_slices]:
    print(f"slot {slot:4} <- row {row:2}, {tokens:2} tokens")

pagedkv.kv_cache_update(new_kv, plan.slices, cache, plan.num_slices, page_size=PAGE_SIZE)

out = np.empty_like(new_kv)
pagedkv.kv_cache_gather(cache, plan.slices, plan.num_slices, out, page_size=PAGE_SIZE)
print("read back:", "the same" if np.array_equal(out, new_kv) else "different")

try:
    outside = np.array([[PAGES * PAGE_SIZE - 3], [0], [40]], np.int32)
    pagedkv.kv_cache_update(new_kv, outside, cache, 1, page_size=PAGE_SIZE)
except pagedkv.RangeError as error:
    print(f"{type(error).__name__}: {error}")
