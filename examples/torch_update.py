"""A layer that writes its keys and values into a paged cache, eager and compiled.

    pip install '.[torch]' && python examples/torch_update.py

torch.compile needs g++.
"""

import torch

import pagedkv
import pagedkv.torch

PAGES, PAGE_SIZE, HEADS, DIM = 256, 16, 8, 128


class Layer(torch.nn.Module):
    """Projects hidden states to K and V, and writes them by the step's plan."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = torch.nn.Linear(64, 2 * HEADS * DIM, bias=False, dtype=torch.bfloat16)
        self.register_buffer("kv_cache", torch.zeros(PAGES * PAGE_SIZE, 2 * HEADS, DIM,
                                                     dtype=torch.bfloat16))

    def forward(self, hidden: torch.Tensor, slices: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
        new_kv = self.qkv(hidden).view(-1, 2 * HEADS, DIM)
        pagedkv.torch.kv_cache_update(self.kv_cache, new_kv, slices, n, page_size=PAGE_SIZE)
        return new_kv.float().sum()


torch.manual_seed(0)
plan = pagedkv.plan([0, 10], [10, 30], [[100], [200, 201, 202]], page_size=PAGE_SIZE, capacity=8)
slices = torch.from_numpy(plan.slices)
n = torch.tensor([plan.num_slices], dtype=torch.int32)  # read when the operator runs

layer = Layer()
hidden = torch.randn(40, 64, dtype=torch.bfloat16)
with torch.no_grad():
    layer(hidden, slices, n)
    eager = layer.kv_cache.clone()
    layer.kv_cache.zero_()
    torch.compile(layer, fullgraph=True)(hidden, slices, n)

rows = layer.qkv(hidden).view(-1, 2 * HEADS, DIM)
print("slots 1600 and 3210:", bool(torch.equal(eager[1600], rows[0])),
      bool(torch.equal(eager[3210], rows[10])))
print("compiled:", "the same" if torch.equal(layer.kv_cache, eager) else "different")
