"""Directories of transformers' own `save_pretrained`, read bitwise and computed alike."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from gptjax.base.errors import UserError
from gptjax.base.tree import named_leaves
from gptjax.conversion.huggingface import is_huggingface, open_huggingface, read_huggingface
from gptjax.conversion.opening import load_run
from gptjax.conversion.stored_arrays import StoredArrays
from gptjax.conversion.tokenizer_writing import write_tokenizer_files
from gptjax.conversion.weights import Weights, to_huggingface
from gptjax.model.gpt import GPT
from gptjax.tokenizers.gpt1 import SPECIAL_TOKENS, gpt1
from gptjax.tokenizers.plain import ByteTokenizer, CharTokenizer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = {"n_layer": 3, "n_head": 5, "n_embd": 20, "n_positions": 24, "vocab_size": 257}
BYTES = ByteTokenizer()


def make(kind: str, **settings):
    """A model of transformers whose parameters are all random, so that none is trivially right."""
    torch.manual_seed(0)
    if kind == "gpt2":
        ends = {"bos_token_id": None, "eos_token_id": None}
        config = transformers.GPT2Config(**ends, **{**SIZES, **settings})
        model = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.OpenAIGPTConfig(**{**SIZES, **settings})
        model = transformers.OpenAIGPTLMHeadModel(config)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model.eval()


def save(model, path: Path, **how) -> Path:
    """A directory of `save_pretrained`, with the tokenizer of bytes in our own JSON."""
    model.save_pretrained(path, **how)
    (path / "tokenizer.json").write_text(BYTES.to_json())
    return path


def arrays_of(model) -> dict[str, np.ndarray]:
    """Its parameters; transformers names a tied table once."""
    return {name: array.detach().float().numpy() for name, array in model.named_parameters()}


def assert_bitwise(weights: Weights, expected: dict[str, np.ndarray]) -> None:
    back = to_huggingface(weights.arrays, weights.model)
    assert back.keys() == expected.keys()
    for name, array in expected.items():
        assert back[name].tobytes() == array.tobytes(), name


def change(path: Path, **settings) -> None:
    """Change fields of config.json; None takes one away."""
    file = path / "config.json"
    table = {**json.loads(file.read_text()), **settings}
    file.write_text(json.dumps({k: v for k, v in table.items() if v is not None}))


@pytest.mark.parametrize("kind", ["gpt2", "openai-gpt"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("shard", ["50GB", "9KB"], ids=["whole", "sharded"])
def test_every_parameter_comes_back_bitwise(tmp_path, kind, tied, shard):
    model = make(kind, tie_word_embeddings=tied)
    path = save(model, tmp_path / "hf", max_shard_size=shard)
    assert (len(list(path.glob("*.safetensors"))) > 2) == (shard == "9KB")
    assert is_huggingface(path)
    weights = read_huggingface(path)
    assert weights.model.tied_head == tied
    assert weights.notes == ()
    assert_bitwise(weights, arrays_of(model))
    assert all(not array[257:].any() for name, array in weights.arrays.items() if "wte" in name)


@pytest.mark.parametrize("kind", ["gpt2", "openai-gpt"])
@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
def test_files_of_pytorch_hold_the_same(tmp_path, kind, sharded):
    """As the hub has old models: without the prefix, and with masks and names of 2019."""
    model = make(kind)
    path = save(model, tmp_path)
    (path / "model.safetensors").unlink()
    state = {re.sub(r"^transformer\.", "", k): v for k, v in model.state_dict().items()}
    mask = torch.tril(torch.ones(24, 24)).view(1, 1, 24, 24)
    state |= {f"h.{i}.attn.bias": mask.bool() for i in range(3)}
    state["h.1.attn.masked_bias"] = torch.tensor(-1e4)
    state["h.2.ln_1.gamma"], state["h.2.ln_1.b"] = (
        state.pop(f"h.2.ln_1.{n}") for n in ("weight", "bias")
    )
    if sharded:
        files = {
            name: f"pytorch_model-0000{i % 2 + 1}-of-00002.bin" for i, name in enumerate(state)
        }
        for file in set(files.values()):
            torch.save({n: v for n, v in state.items() if files[n] == file}, path / file)
        (path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": files}))
    else:
        torch.save(state, path / "pytorch_model.bin")
    assert_bitwise(read_huggingface(path), arrays_of(model))


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_half_precision_becomes_float32_without_a_change(tmp_path, stored):
    model = make("gpt2").to(stored)
    path = save(model, tmp_path)
    weights = read_huggingface(path)
    assert {array.dtype for array in weights.arrays.values()} == {np.dtype(np.float32)}
    assert_bitwise(weights, arrays_of(model))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("gpt2", {}), ("gpt2", {"activation_function": "gelu", "tie_word_embeddings": False}),
     ("openai-gpt", {})],
    ids=["gpt2", "exact gelu", "gpt1"],
)  # fmt: skip
def test_a_directory_loads_like_a_run_with_transformers_logits(tmp_path, kind, settings):
    model = make(kind, **settings)
    run = load_run(save(model, tmp_path))
    tokens_BT = np.random.default_rng(0).integers(0, 257, (2, 24), dtype=np.int32)
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens_BT).long()).logits.numpy()
    logits_BTV = jax.jit(GPT(run.config.model).apply)({"params": run.params}, tokens_BT)
    np.testing.assert_allclose(np.asarray(logits_BTV)[..., :257], expected, rtol=0, atol=1e-5)
    assert (run.step, run.tokenizer.name) == (0, "bytes")
    assert {str(leaf.dtype) for leaf in named_leaves(run.params).values()} == {"float32"}


def test_a_directory_has_no_steps(tmp_path):
    with pytest.raises(UserError, match="has no step 500"):
        load_run(f"{save(make('gpt2'), tmp_path / 'hf')}@500")


def test_dropout_context_and_activation_are_taken_over(tmp_path):
    path = save(make("gpt2", embd_pdrop=0.3, attn_pdrop=0.0, activation_function="gelu"), tmp_path)
    model = read_huggingface(path).model
    assert (model.embd_pdrop, model.attn_pdrop, model.resid_pdrop) == (0.3, 0.0, 0.1)
    assert (model.n_ctx, model.activation, model.norm) == (24, "gelu_erf", "pre")


def test_a_head_beside_a_tied_table(tmp_path):
    """Equal, it is the table; different, it counts, whatever the config says."""
    model = make("gpt2", tie_word_embeddings=False)
    path = save(model, tmp_path)
    change(path, tie_word_embeddings=True)
    weights = read_huggingface(path)
    assert not weights.model.tied_head
    assert "another head" in weights.notes[0]
    assert_bitwise(weights, arrays_of(model))
    model.lm_head.weight.data = model.transformer.wte.weight.data.clone()
    save(model, path)
    change(path, tie_word_embeddings=True)
    weights = read_huggingface(path)
    assert weights.model.tied_head
    assert weights.notes == ()


def test_biases_of_zero_stay_unless_our_own_export_says_that_there_are_none(tmp_path):
    model = make("gpt2")
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.zero_()
    path = save(model, tmp_path)
    weights = read_huggingface(path)
    assert weights.model.bias
    assert weights.model.qkv_bias
    assert_bitwise(weights, arrays_of(model))
    change(path, gptjax={"bias": False, "qkv_bias": False})
    weights = read_huggingface(path)
    assert not weights.model.bias
    assert not weights.model.qkv_bias
    without = {n: a for n, a in arrays_of(model).items() if not n.endswith("bias")}
    assert_bitwise(weights, without)
    model.transformer.h[1].ln_1.bias.data[3] = 1
    save(model, path)
    change(path, gptjax={"bias": False, "qkv_bias": False})
    with pytest.raises(UserError, match=r"transformer\.h\.1\.ln_1\.bias is not zero"):
        read_huggingface(path)


def test_values_that_are_not_finite_are_told(tmp_path):
    model = make("gpt2")
    model.transformer.h[2].mlp.c_fc.weight.data[1, 1] = torch.nan
    assert "h/mlp/c_fc/kernel" in read_huggingface(save(model, tmp_path)).notes[0]


def test_rows_that_only_pad_are_left_out(tmp_path):
    """Characters have 4 ids; a table of 64 rows was padded for them."""
    model = make("gpt2", vocab_size=64)
    path = save(model, tmp_path)
    (path / "tokenizer.json").write_text(CharTokenizer("abc").to_json())
    weights = read_huggingface(path)
    assert weights.model.n_vocab == 4
    assert "last 60 rows" in weights.notes[0]
    wte = arrays_of(model)["transformer.wte.weight"]
    assert (
        to_huggingface(weights.arrays, weights.model)["transformer.wte.weight"] == wte[:4]
    ).all()


def test_gpt1_s_special_tokens_lie_in_the_padding(tmp_path, test_data):
    tokenizer = gpt1(test_data / "gpt1")
    model = make("openai-gpt", vocab_size=40_481, n_embd=5)
    path = tmp_path / "hf"
    model.save_pretrained(path)
    (path / "tokenizer.json").write_text(tokenizer.to_json())
    weights = read_huggingface(path)
    assert (weights.model.n_vocab, weights.task) == (40_478, "classify")
    wte = arrays_of(model)["transformer.tokens_embed.weight"]
    assert weights.arrays["wte/embedding"][:40_481].tobytes() == wte.tobytes()
    assert max(SPECIAL_TOKENS.values()) == 40_480


def test_a_tokenizer_that_transformers_reads_is_read(tmp_path):
    pytest.importorskip("tokenizers")
    model = make("gpt2")
    model.save_pretrained(tmp_path)
    write_tokenizer_files(BYTES, tmp_path, 24)
    assert read_huggingface(tmp_path).tokenizer.to_json() == BYTES.to_json()


@pytest.mark.parametrize(
    ("tokenizer", "words"),
    [(CharTokenizer("abc"), "has 4 ids, the model has 257"), (None, "has no tokenizer")],
)
def test_a_tokenizer_that_does_not_fit(tmp_path, tokenizer, words):
    path = save(make("gpt2"), tmp_path)
    (path / "tokenizer.json").unlink()
    if tokenizer is not None:
        (path / "tokenizer.json").write_text(tokenizer.to_json())
    with pytest.raises(UserError, match=words):
        open_huggingface(path)
    assert read_huggingface(path, "bytes").tokenizer.name == "bytes"


def test_weights_of_another_model_are_told(tmp_path):
    path = save(make("gpt2"), tmp_path)
    change(path, n_layer=2)
    with pytest.raises(UserError, match="says 2 layers, but the weights beside it have 3"):
        read_huggingface(path)
    change(path, n_layer=3, n_embd=10**9, n_head=1)
    with pytest.raises(UserError, match="do not fit its config"):  # and no memory is asked for
        read_huggingface(path)


def test_a_model_opens_for_its_shape_alone(tmp_path, monkeypatch):
    """As --train.init-from does before anything is compiled."""
    path = save(make("gpt2"), tmp_path)
    monkeypatch.setattr(StoredArrays, "__getitem__", lambda *_: pytest.fail("an array was read"))
    opened = open_huggingface(path)
    assert (opened.model.n_embd, opened.model.n_vocab, opened.rows) == (20, 257, 257)
