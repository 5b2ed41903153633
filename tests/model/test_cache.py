"""Attention over a key-value cache is attention, and no row depends on what is not its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.config import ModelConfig
from gptjax.model.attention import attend
from gptjax.model.cache import (
    PIECE,
    Cache,
    LayerCache,
    append,
    attend_to_cache,
    empty_cache,
    resized,
)

LENGTHS = (0, 1, 5, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 3 * PIECE - 1)
ROWS, HEADS, WIDTH = len(LENGTHS), 3, 16
lengths_B = jnp.array(LENGTHS)
attending = jax.jit(attend_to_cache)


def drawn(*shape: int, seed: int = 0, scale: float = 1.0, dtype: str = "float32") -> jax.Array:
    return jnp.asarray(scale * np.random.default_rng(seed).standard_normal(shape), dtype)


def layer(positions: int, dtype: str = "float32", rows: int = ROWS) -> LayerCache:
    """Keys and values whose first positions are the same for every number of them."""
    k, v = (drawn(rows, HEADS, 4 * PIECE, WIDTH, seed=s, scale=2, dtype=dtype) for s in (1, 2))
    return LayerCache(k[:, :, :positions], v[:, :, :positions])


def is_seen(positions: int) -> jax.Array:
    """[B, S]: the positions up to the token that is read."""
    return jnp.arange(positions)[None] <= lengths_B[:, None]


def test_attention_is_that_of_the_definition():
    q_BHK, cache = drawn(ROWS, HEADS, WIDTH, scale=2), layer(3 * PIECE)
    expected = attend(
        q_BHK[:, None],
        cache.k_BHSK.swapaxes(1, 2),
        cache.v_BHSK.swapaxes(1, 2),
        mask_BTS=is_seen(3 * PIECE)[:, None],
    )[:, 0]
    np.testing.assert_allclose(attending(q_BHK, cache, lengths_B), expected, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("bfloat16", 2e-2)])
def test_attention_is_that_of_numpy(dtype, tolerance):
    q_BHK, cache = drawn(ROWS, HEADS, WIDTH, dtype=dtype), layer(3 * PIECE, dtype)
    y_BHK = attending(q_BHK, cache, lengths_B)
    assert y_BHK.dtype == dtype
    q, k, v = (np.asarray(x, np.float64) for x in (q_BHK, *cache))
    for row, length in enumerate(LENGTHS):
        scores_HS = np.einsum("hk,hsk->hs", q[row], k[row, :, : length + 1]) / WIDTH**0.5
        weights_HS = np.exp(scores_HS - scores_HS.max(1, keepdims=True))
        weights_HS /= weights_HS.sum(1, keepdims=True)
        expected = np.einsum("hs,hsk->hk", weights_HS, v[row, :, : length + 1])
        error = np.abs(np.asarray(y_BHK[row], np.float64) - expected).max()
        assert error <= tolerance * np.abs(v[row]).max(), length


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_behind_a_row_changes_no_bit(dtype):
    """Garbage there, a longer cache, a garbled token in every other row, fewer rows."""
    q_BHK, cache = drawn(ROWS, HEADS, WIDTH, dtype=dtype), layer(3 * PIECE, dtype)
    expected = np.asarray(attending(q_BHK, cache, lengths_B))
    garbage = drawn(ROWS, HEADS, 3 * PIECE, WIDTH, seed=9, scale=1e4, dtype=dtype)
    is_own = is_seen(3 * PIECE)[:, None, :, None]
    spoilt = LayerCache(*(jnp.where(is_own, x, garbage) for x in cache))
    assert not np.array_equal(spoilt.k_BHSK, cache.k_BHSK)
    np.testing.assert_array_equal(attending(q_BHK, spoilt, lengths_B), expected)

    longer = resized(Cache((spoilt,), lengths_B), 4 * PIECE).layers[0]
    np.testing.assert_array_equal(attending(q_BHK, longer, lengths_B), expected)
    np.testing.assert_array_equal(attending(q_BHK, layer(4 * PIECE, dtype), lengths_B), expected)

    for row in range(ROWS):
        is_row = (jnp.arange(ROWS) == row)[:, None, None]
        others = LayerCache(*(jnp.where(is_row[..., None], x, 3 * x[::-1] + 1) for x in cache))
        q = jnp.where(is_row, q_BHK, 5 * q_BHK + 1)
        lengths = jnp.where(jnp.arange(ROWS) == row, lengths_B, lengths_B[::-1] // 2)
        np.testing.assert_array_equal(attending(q, others, lengths)[row], expected[row])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(ROWS, HEADS, WIDTH), (1, 12, 64), (4, 4, 8)], ids=str)
def test_a_row_that_fits_a_shorter_cache_is_the_same_there(shape, dtype):
    rows, heads, width = shape
    q_BHK = drawn(*shape, dtype=dtype)
    k, v = (drawn(rows, heads, 3 * PIECE, width, seed=s, scale=2, dtype=dtype) for s in (1, 2))
    for pieces in (1, 2):
        ends_B = jnp.array(np.random.default_rng(3).integers(0, pieces * PIECE, rows))
        short = resized(Cache((LayerCache(k, v),), ends_B), pieces * PIECE).layers[0]
        assert short.k_BHSK.shape[2] == pieces * PIECE
        expected = attending(q_BHK, LayerCache(k, v), ends_B)
        np.testing.assert_array_equal(attending(q_BHK, short, ends_B), expected)


@pytest.mark.parametrize("rows", [1, ROWS])
def test_a_token_is_written_behind_the_last_of_its_row(rows):
    cache, ends_B = layer(2 * PIECE, rows=rows), lengths_B[-rows:] - PIECE
    ends_B = jnp.maximum(ends_B, 0)
    k_B1HK, v_B1HK = (drawn(rows, 1, HEADS, WIDTH, seed=s) for s in (3, 4))
    written = jax.jit(append)(cache, k_B1HK, v_B1HK, ends_B)
    for old, new, token in zip(cache, written, (k_B1HK, v_B1HK), strict=True):
        expected = np.array(old)
        for row in range(rows):
            expected[row, :, int(ends_B[row])] = token[row, 0]
        np.testing.assert_array_equal(new, expected)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_token_beyond_the_end_is_dropped(rows):
    cache = layer(PIECE, rows=rows)
    token = drawn(rows, 1, HEADS, WIDTH, seed=3)
    for end in (PIECE, PIECE + 1, 5 * PIECE):
        written = jax.jit(append)(cache, token, token, jnp.full(rows, end))
        for old, new in zip(cache, written, strict=True):
            np.testing.assert_array_equal(new, old)


def test_a_prompt_is_written_at_the_beginning_in_the_type_of_the_cache():
    empty = empty_cache(ModelConfig(n_layer=1, n_head=HEADS, n_embd=HEADS * WIDTH), 2, 200)
    assert empty.layers[0].k_BHSK.dtype == "bfloat16"
    k_BTHK, v_BTHK = (drawn(2, 150, HEADS, WIDTH, seed=s) for s in (3, 4))
    written = append(empty.layers[0], k_BTHK, v_BTHK, empty.lengths_B)
    for new, prompt in zip(written, (k_BTHK, v_BTHK), strict=True):
        assert new.shape == (2, HEADS, 2 * PIECE, WIDTH)
        np.testing.assert_array_equal(
            new[:, :, :150], prompt.swapaxes(1, 2).astype("bfloat16"), strict=True
        )
        assert not new[:, :, 150:].any()


def test_a_cache_that_grows_and_shrinks_keeps_what_fits():
    cache = Cache((layer(2 * PIECE), layer(2 * PIECE)), lengths_B)
    longer, shorter = resized(cache, 3 * PIECE), resized(cache, PIECE)
    kept = (jax.tree.leaves(x.layers) for x in (cache, longer, shorter))
    for old, grown, cut in zip(*kept, strict=True):
        np.testing.assert_array_equal(grown[:, :, : 2 * PIECE], old)
        assert not grown[:, :, 2 * PIECE :].any()
        np.testing.assert_array_equal(cut, old[:, :, :PIECE])
    assert longer.lengths_B is shorter.lengths_B is lengths_B


@pytest.mark.parametrize(("batch", "length"), [(0, 5), (5, 0)])
def test_a_cache_of_nothing_is_refused(batch, length):
    with pytest.raises(ValueError, match="batch" if batch == 0 else "length"):
        empty_cache(ModelConfig(), batch, length)
