"""Three prompts served by a small transformer, its keys and values in pages.

    pip install '.[torch]' && python examples/torch_model.py

The answers are those of the same model without a cache, which computes every request anew in
each step. Pages that hold the beginning of a prompt already are found and not computed again.
"""

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import nn

import pagedkv.torch
from pagedkv.pool import Pool

LAYERS, HEADS, DIM, VOCABULARY, LONGEST = 3, 4, 16, 500, 128
WIDTH, PAGES, PAGE = HEADS * DIM, 64, 16


def attention(q, k, v):
    """Of the last len(q) tokens to all len(k)."""
    mask = torch.ones(len(q), len(k), dtype=torch.bool).tril(len(k) - len(q))
    q, k, v = (t.transpose(0, 1) for t in (q, k, v))
    return nn.functional.scaled_dot_product_attention(q, k, v, mask).transpose(0, 1).flatten(1)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.keys, self.values = (torch.zeros(PAGES, PAGE, HEADS, DIM) for _ in range(2))

    def forward(self, x, step):
        q, k, v = self.qkv(self.norm(x)).view(-1, 3, HEADS, DIM).unbind(1)
        if step is None:  # without a cache: x is all of one request
            return x + self.out(attention(q, k, v))
        torch.ops.pagedkv.kv_cache_update_separate_(  # the one line that writes the pages
            self.keys, self.values, k, v, step.slices, step.n_slices, PAGE)
        seen = [attention(new, self.read(self.keys, r), self.read(self.values, r))
                for r, new in zip(step.requests, q.split(step.scheduled))]
        return x + self.out(torch.cat(seen))

    def read(self, cache, request):
        return cache[request.pages].flatten(0, 1)[:len(request.tokens)]


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(LONGEST, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens, positions, step=None):
        x = self.tokens(torch.tensor(tokens)) + self.positions(torch.tensor(positions))
        for layer in self.layers:
            x = layer(x, step)
        return self.head(x).argmax(-1).tolist()


@dataclass
class Request:
    tokens: list
    pages: list
    computed: int  # of the tokens, keys and values are in the pages


@dataclass
class Step:
    """What all layers use."""

    requests: list
    scheduled: list  # how many new tokens each has
    slices: torch.Tensor
    n_slices: torch.Tensor


def plan_step(requests):
    computed = [r.computed for r in requests]
    scheduled = [len(r.tokens) - r.computed for r in requests]
    plan = pagedkv.plan(computed, scheduled, [r.pages for r in requests], page_size=PAGE)
    n_slices = torch.tensor([plan.num_slices], dtype=torch.int32)
    return Step(requests, scheduled, torch.from_numpy(plan.slices), n_slices)


def go_on(model, requests):
    """What is not computed yet of each request, and its next token."""
    step = plan_step(requests)
    answers = model([t for r in requests for t in r.tokens[r.computed:]],
                    [p for r in requests for p in range(r.computed, len(r.tokens))], step)
    for r, end in zip(requests, accumulate(step.scheduled)):
        r.computed = len(r.tokens)
        r.tokens.append(answers[end - 1])


def serve(model, prompts, n_new):
    pool, running = Pool(PAGES, page_size=PAGE), []
    for prompt in prompts:
        pages = pool.find(prompt)  # those that hold its beginning
        pool.share(pages)
        found, need = len(pages), -(-(len(prompt) + n_new) // PAGE)
        pages += pool.alloc(need - found, after=pages[-1] if found else -1)
        running.append(Request(list(prompt), pages, found * PAGE))
        print(f"{len(prompt)} tokens, {found * PAGE} of them found, on pages {pages}")
        go_on(model, running[-1:])
        full = len(prompt) // PAGE
        pool.publish(prompt[:full * PAGE], pages[:full])
    for _ in range(n_new - 1):
        go_on(model, running)
    return [r.tokens for r in running]


def without_cache(model, prompt, n_new):
    tokens = list(prompt)
    for _ in range(n_new):
        tokens.append(model(tokens, list(range(len(tokens))))[-1])
    return tokens


torch.manual_seed(0)
model, system = Model(), list(range(100, 140))  # 40 tokens that two prompts begin with
prompts = [system + [7, 8, 9], system + [1, 2], [5, 4, 3, 2, 1]]
with torch.no_grad():
    served = serve(model, prompts, 20)
    print("the same tokens:", served == [without_cache(model, p, 20) for p in prompts])
