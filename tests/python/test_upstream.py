"""The grids of upstream's own tests, written by us, called as upstream calls.

vLLM's kernel test (16 cases) through JAX, through PyTorch's operator and through NumPy, and
tpu-inference's (32 basic, 16 sharded, 9 invalid) through JAX. Upstream allows a tolerance; a copy
needs none.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pagedkv
import pagedkv.jax
import pagedkv.torch  # noqa: F401 - registers the operators
import pytest
import torch
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from pagedkv.jax import kv_cache_update

import model
from model import check_same, item_bytes
from test_jax import INVALID, upstream_slices

NEW_TOKENS = 128


def make_new_kv(heads: int, dim: int) -> Any:
    """Normal numbers in bf16; every row differs."""
    rng = np.random.default_rng(1234)
    return rng.standard_normal((NEW_TOKENS, heads, dim), np.float32).astype(ml_dtypes.bfloat16)


def padded(slices: Any, block: int) -> Any:
    """To a whole number of blocks, with zeros, as upstream did at first."""
    return np.pad(slices, [[0, 0], [0, -slices.shape[1] % block]])


def expected(new_kv: Any, slices: Any, slots: int) -> Any:
    cache = np.zeros((slots, *new_kv.shape[1:]), new_kv.dtype)
    model.update(item_bytes(new_kv), model.columns(slices, 7), item_bytes(cache))
    return cache


def check(got: Any, new_kv: Any, slices: Any, pages: int, page_size: int) -> None:
    check_same(got, expected(new_kv, slices, pages * page_size), page_size=page_size,
               shape=got.shape)


# ---- vLLM: tests/v1/tpu/test_kv_cache_update_kernel.py ------------------------------------


def numpy_way(new_kv: Any, slices: Any, page_size: int, block: int) -> Any:
    kv_cache = np.zeros((1000 * page_size, *new_kv.shape[1:]), new_kv.dtype)
    result = pagedkv.kv_cache_update(new_kv, slices, kv_cache, np.array([7], np.int32),
                                     page_size=page_size, num_slices_per_block=block)
    assert result is kv_cache
    return kv_cache


def torch_way(new_kv: Any, slices: Any, page_size: int, block: int) -> Any:
    kv_cache = torch.zeros((1000 * page_size, *new_kv.shape[1:]), dtype=torch.bfloat16)
    kv = torch.from_numpy(new_kv.view(np.int16)).view(torch.bfloat16)
    slot_mapping = torch.from_numpy(slices)
    num_kv_update_slices = torch.tensor([7], dtype=torch.int32)
    result = torch.ops.pagedkv.kv_cache_update_op(
        kv, slot_mapping, kv_cache, num_kv_update_slices, page_size, block)
    kv_cache.copy_(result)
    return kv_cache.view(torch.int16).numpy()


def jax_way(new_kv: Any, slices: Any, page_size: int, block: int) -> Any:
    kv_cache = jnp.zeros((1000 * page_size, *new_kv.shape[1:]), jnp.bfloat16)
    kv_cache = kv_cache_update(
        jnp.asarray(new_kv), jnp.asarray(slices), kv_cache, jnp.array([7], jnp.int32),
        page_size=page_size, num_slices_per_block=block)
    return np.asarray(kv_cache)


@pytest.mark.parametrize("num_slices_per_block", [4, 8])
@pytest.mark.parametrize("head_dim", [128, 256])
@pytest.mark.parametrize("num_combined_kv_heads", [2, 16])
@pytest.mark.parametrize("page_size", [32, 33])
@pytest.mark.parametrize("way", [numpy_way, torch_way, jax_way])
def test_vllm_grid(way: Any, page_size: int, num_combined_kv_heads: int, head_dim: int,
                   num_slices_per_block: int) -> None:
    new_kv = make_new_kv(num_combined_kv_heads, head_dim)
    slices = padded(upstream_slices(page_size), num_slices_per_block)
    got = way(new_kv, slices, page_size, num_slices_per_block)
    check(got, new_kv, slices, 1000, page_size)


# ---- tpu-inference: ragged_kv_cache_update_v2_test.py ---------------------------------------

PAGES = 20


@pytest.mark.parametrize("dynamic_validate_inputs", [False, True])
@pytest.mark.parametrize("num_slices_per_block", [None, 8])
@pytest.mark.parametrize("head_dim", [128, 256])
@pytest.mark.parametrize("num_combined_kv_heads", [2, 16])
@pytest.mark.parametrize("page_size", [32, 33])
def test_basic(page_size: int, num_combined_kv_heads: int, head_dim: int,
               num_slices_per_block: int | None, dynamic_validate_inputs: bool) -> None:
    new_kv = make_new_kv(num_combined_kv_heads, head_dim)
    slices = padded(upstream_slices(page_size), num_slices_per_block or 1)
    kv_cache = jnp.zeros((PAGES * page_size, num_combined_kv_heads, head_dim), jnp.bfloat16)
    # Upstream's validator only works without jit; ours with it too, which the next test shows.
    with jax.disable_jit(dynamic_validate_inputs):
        kv_cache = kv_cache_update(
            jnp.asarray(new_kv), jnp.asarray(slices), kv_cache, jnp.array([7], jnp.int32),
            page_size=page_size, num_slices_per_block=num_slices_per_block,
            dynamic_validate_inputs=dynamic_validate_inputs)
    check(np.asarray(kv_cache), new_kv, slices, PAGES, page_size)


@pytest.mark.parametrize("num_slices_per_block", [None, 8])
@pytest.mark.parametrize("head_dim", [128, 256])
@pytest.mark.parametrize("num_combined_kv_heads", [16, 32])
@pytest.mark.parametrize("page_size", [32, 33])
def test_shard_map(page_size: int, num_combined_kv_heads: int, head_dim: int,
                   num_slices_per_block: int | None) -> None:
    new_kv = make_new_kv(num_combined_kv_heads, head_dim)
    slices = padded(upstream_slices(page_size), num_slices_per_block or 1)
    mesh = Mesh(np.array(jax.devices()), ("x",))
    kv_cache_pspec = P(None, "x", None)
    sharding = NamedSharding(mesh, kv_cache_pspec)
    kv_cache = jax.device_put(
        jnp.zeros((PAGES * page_size, num_combined_kv_heads, head_dim), jnp.bfloat16), sharding)
    kv_cache = kv_cache_update(
        jax.device_put(jnp.asarray(new_kv), sharding), jnp.asarray(slices), kv_cache,
        jnp.array([7], jnp.int32), page_size=page_size,
        num_slices_per_block=num_slices_per_block, mesh=mesh, kv_cache_pspec=kv_cache_pspec)
    check(np.asarray(kv_cache), new_kv, slices, PAGES, page_size)


@pytest.mark.parametrize("name", list(INVALID))
def test_invalid_inputs(name: str) -> None:
    changes, fragment = INVALID[name]
    slices = upstream_slices(32)
    for row, column, value in changes:
        slices[row, column] = value
    kv_cache = jnp.zeros((PAGES * 32, 2, 128), jnp.bfloat16)
    with jax.disable_jit(), pytest.raises(ValueError) as caught:
        kv_cache_update(
            jnp.asarray(make_new_kv(2, 128)), jnp.asarray(slices), kv_cache,
            jnp.array([7], jnp.int32), page_size=32, num_slices_per_block=8,
            dynamic_validate_inputs=True)
    assert fragment in str(caught.value)
    assert not np.asarray(kv_cache).view(np.uint8).any()


def test_positional_call_and_vmem_limit() -> None:
    """Upstream's remaining keyword, and the order of its four arrays."""
    new_kv, slices = make_new_kv(2, 128), upstream_slices(32)
    kv_cache = kv_cache_update(
        jnp.asarray(new_kv), jnp.asarray(slices), jnp.zeros((PAGES * 32, 2, 128), jnp.bfloat16),
        jnp.array([7], jnp.int32), page_size=32, num_slices_per_block=None, mesh=None,
        kv_cache_pspec=None, dynamic_validate_inputs=False, vmem_limit_bytes=40 * 1024 * 1024)
    check(np.asarray(kv_cache), new_kv, slices, PAGES, 32)
