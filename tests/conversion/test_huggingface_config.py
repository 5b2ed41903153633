"""What config.json says, and everything in it that our network does not compute."""

from pathlib import Path

import pytest

from gptjax.base.errors import UserError
from gptjax.config import ModelConfig
from gptjax.conversion.huggingface_config import model_of, read_settings

FILE = Path("config.json")
# of the hub, in 2019; it has since been left as it was
HUB_GPT2 = {
    "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
    "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12,
    "n_layer": 12, "n_positions": 1024, "resid_pdrop": 0.1, "vocab_size": 50257,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
}  # fmt: skip
DROPOUTS = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.1)


def test_the_hub_s_gpt2_is_ours():
    expected = ModelConfig(n_vocab=50257, dtype="float32", **DROPOUTS)
    assert model_of(HUB_GPT2, FILE) == expected
    assert model_of({"model_type": "gpt2"}, FILE) == expected  # by transformers' defaults


def test_gpt1_by_its_defaults():
    model = model_of({"model_type": "openai-gpt", "afn": "gelu"}, FILE)
    assert (model.n_ctx, model.n_vocab, model.norm) == (512, 40478, "post")
    assert (model.final_norm, model.activation) == (False, "gelu_tanh")


def test_newer_names_of_the_same_fields():
    names = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = model_of({"model_type": "gpt2", "max_position_embeddings": 64, **names}, FILE)
    assert (model.n_embd, model.n_layer, model.n_head, model.n_ctx) == (32, 2, 4, 64)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"activation_function": "relu"}, "activation_function is 'relu'"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon is 1e-06"),
        ({"n_inner": 100}, "n_inner is 100, expected null or 4 x n_embd = 3072"),
        ({"scale_attn_weights": False}, "scale_attn_weights is False"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ({"add_cross_attention": True}, "add_cross_attention is True"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is"),
        ({"n_head": 7}, "n_head 7 does not divide n_embd 768"),
        ({"n_layer": "twelve"}, "n_layer is 'twelve'"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"attn_pdrop": 1.0}, "attn_pdrop is 1.0"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'"),
        ({"gptjax": {"bias": 0}}, "bias is 0"),
        ({"gptjax": []}, "gptjax is \\[\\]"),
    ],
)
def test_what_our_network_does_not_compute_is_refused(settings, complaint):
    with pytest.raises(UserError, match=complaint):
        model_of({**HUB_GPT2, **settings}, FILE)


def test_all_misfits_are_listed_together():
    with pytest.raises(UserError) as caught:
        model_of({**HUB_GPT2, "activation_function": "relu", "n_inner": 5}, FILE)
    assert len(str(caught.value).splitlines()) == 3


def test_upcast_attention_and_an_inner_size_of_four_widths_are_ours():
    same = {"reorder_and_upcast_attn": True, "n_inner": 3072, "use_cache": True}
    assert model_of({**HUB_GPT2, **same}, FILE) == model_of(HUB_GPT2, FILE)


@pytest.mark.parametrize(
    "settings", [{"model_type": "llama"}, {"architectures": ["LlamaForCausalLM"]}, {}]
)
def test_another_architecture_is_named(settings):
    with pytest.raises(UserError, match="describes another network"):
        model_of(settings, FILE)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not JSON"),
        ("[1]", "not an object"),
        ("[" * 10**5, "is not JSON"),
        (None, "has no"),
    ],
)
def test_a_config_that_cannot_be_read(tmp_path, content, words):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=words):
        read_settings(tmp_path)
