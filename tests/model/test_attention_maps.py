"""The weights of a head against NumPy, against Hugging Face's, and against what attention does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from huggingface_side import ODD, config_of

from gptjax.base.tree import as_tree
from gptjax.config import ModelConfig
from gptjax.conversion.weights import from_huggingface
from gptjax.model.attention_maps import attention_map
from gptjax.model.gpt import init_params

CFG = ModelConfig(n_layer=3, n_head=2, n_embd=16, n_ctx=24, n_vocab=61, dtype="float32")
compiled_map = jax.jit(attention_map, static_argnums=0)  # layer and head are traced
TOKENS_BT = np.random.default_rng(0).integers(0, 61, (2, 24), dtype=np.int32)


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda x: 4 * x, init_params(CFG, jax.random.key(0)))


def weights_by_hand(params, tokens_T, head):
    """The first layer's weights for one row, in float64 NumPy, one query at a time."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    first = jax.tree.map(lambda x: x[0], p["h"])
    x_TD = p["wte"]["embedding"][tokens_T] + p["wpe"]["embedding"][: len(tokens_T)]
    x_TD = (x_TD - x_TD.mean(1, keepdims=True)) / np.sqrt(x_TD.var(1, keepdims=True) + 1e-5)
    x_TD = x_TD * first["ln_1"]["scale"] + first["ln_1"]["bias"]
    qkv = x_TD @ first["attn"]["c_attn"]["kernel"] + first["attn"]["c_attn"]["bias"]
    own = slice(head * CFG.head_dim, (head + 1) * CFG.head_dim)
    q_TK, k_TK, _ = (part[:, own] for part in np.split(qkv, 3, axis=1))
    weights_TS = np.zeros((len(tokens_T), len(tokens_T)))
    for t in range(len(tokens_T)):
        scores = np.exp(k_TK[: t + 1] @ q_TK[t] / np.sqrt(CFG.head_dim))
        weights_TS[t, : t + 1] = scores / scores.sum()
    return weights_TS


@pytest.mark.parametrize("head", [0, 1])
def test_the_first_layer_equals_numpys_row_by_row(params, head):
    found_BTS = compiled_map(CFG, params, TOKENS_BT, 0, head)
    for row, tokens_T in enumerate(TOKENS_BT):
        expected_TS = weights_by_hand(params, tokens_T, head)
        np.testing.assert_allclose(found_BTS[row], expected_TS, rtol=0, atol=1e-6)


def test_a_deep_layer_is_the_first_one_of_the_blocks_above(params):
    """Blocks 1 and 2 as a model of their own get what block 0 writes."""
    deep_BTS = compiled_map(CFG, params, TOKENS_BT, 2, 1)
    swapped = params | {"h": jax.tree.map(lambda x: x[jnp.array([1, 0, 2])], params["h"])}
    assert abs(deep_BTS - compiled_map(CFG, swapped, TOKENS_BT, 2, 1)).max() > 1e-3
    unused = jax.tree.map(lambda x: x.at[2:].multiply(7), params["h"]["mlp"])
    above = params | {"h": params["h"] | {"mlp": unused}}
    np.testing.assert_array_equal(deep_BTS, compiled_map(CFG, above, TOKENS_BT, 2, 1))


def test_padding_on_the_right_changes_no_row_before_it(params):
    short_BTS = compiled_map(CFG, params, TOKENS_BT[:, :9], 1, 0)
    long_BTS = compiled_map(CFG, params, TOKENS_BT, 1, 0)
    np.testing.assert_allclose(long_BTS[:, :9, :9], short_BTS, rtol=0, atol=1e-6)
    assert not np.triu(long_BTS, 1).any()
    np.testing.assert_allclose(long_BTS.sum(-1), 1, rtol=1e-6)


def test_tokens_beyond_the_context_are_refused(params):
    with pytest.raises(ValueError, match="25 tokens do not fit the context of 24"):
        attention_map(CFG, params, np.zeros((1, 25), np.int32), 0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2", "gpt1"])
def test_all_heads_equal_hugging_faces(kind):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    family = {"gpt2": "GPT2", "gpt1": "OpenAIGPT"}[kind]
    torch.manual_seed(0)
    special = {} if kind == "gpt1" else {"bos_token_id": None, "eos_token_id": None}
    config = getattr(transformers, f"{family}Config")(**ODD, **special, attn_implementation="eager")
    model = getattr(transformers, f"{family}LMHeadModel")(config).eval()
    cfg, theirs = config_of(kind, ODD), {}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            theirs[name] = weight.mul_(3).numpy()
    params = jax.tree.map(jnp.asarray, as_tree(from_huggingface(theirs, cfg, "the reference")))
    tokens_BT = np.random.default_rng(1).integers(0, ODD["vocab_size"], (2, ODD["n_positions"]))
    with torch.no_grad():
        layers_BHTS = model(torch.tensor(tokens_BT), output_attentions=True).attentions
    assert len(layers_BHTS) == cfg.n_layer
    for layer, weights_BHTS in enumerate(layers_BHTS):
        for head in range(cfg.n_head):
            found_BTS = compiled_map(cfg, params, tokens_BT, layer, head)
            np.testing.assert_allclose(found_BTS, weights_BHTS[:, head], rtol=0, atol=1e-5)
