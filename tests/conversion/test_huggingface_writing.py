"""A model goes to a Hugging Face directory and comes back, and transformers computes the same."""

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

from gptjax.base.errors import UserError
from gptjax.base.tree import as_tree
from gptjax.config import ModelConfig
from gptjax.conversion import huggingface_writing
from gptjax.conversion.huggingface import read_huggingface
from gptjax.conversion.huggingface_writing import write_huggingface
from gptjax.conversion.reader_limits import READERS, reasons_against
from gptjax.conversion.safetensors_files import write_safetensors
from gptjax.conversion.tokenizer_writing import write_tokenizer_files
from gptjax.conversion.weights import Weights
from gptjax.model.gpt import GPT
from gptjax.model.places import leaves
from gptjax.tokenizers.bpe import BPETokenizer
from gptjax.tokenizers.gpt1 import SPECIAL_TOKENS, GPT1Tokenizer
from gptjax.tokenizers.plain import ByteTokenizer, CharTokenizer
from gptjax.tokenizers.registry import fingerprint

pytest.importorskip("tokenizers")

GPT2 = ModelConfig(
    n_layer=3, n_head=5, n_embd=40, n_ctx=24, n_vocab=257, embd_pdrop=0.1, dtype="float32"
)
GPT1 = replace(GPT2, norm="post", final_norm=False, scale_residual_init=False, attn_pdrop=0.2)
MODELS = {
    "gpt2": GPT2,
    "gpt1": GPT1,
    "untied": replace(GPT2, tied_head=False, activation="gelu_erf"),
    "no bias": replace(GPT2, bias=False, qkv_bias=False),
    "qkv bias off": replace(GPT2, qkv_bias=False, tied_head=False),
    "gpt1, untied": replace(GPT1, tied_head=False),
    "gpt1, no bias": replace(GPT1, bias=False, qkv_bias=False, scale_residual_init=True),
}


def weights_of(model: ModelConfig, seed: int = 0, **others: Any) -> Weights:
    """A model of random weights, in which biases and norms matter too."""
    chance, arrays = np.random.default_rng(seed), {}
    for leaf in leaves(model):
        array = chance.normal(0, 0.3, leaf.shape).astype(np.float32)
        array += leaf.name.endswith("scale")
        array[len(array) - leaf.padding :] = 0
        arrays[leaf.name] = array
    return Weights(model, arrays, ByteTokenizer(), "a test", **others)


def stored(directory: Path) -> dict[str, np.ndarray]:
    """Every array of a directory's one file."""
    with safe_open(directory / "model.safetensors", "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict


def settings(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "config.json").read_text())


def same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
    """Whether two sets of arrays have the same names and the same bits."""
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and first[name].tobytes() == second[name].tobytes()
        for name in first
    )


@pytest.mark.parametrize("name", MODELS)
def test_out_and_in_and_out_again_no_bit_changes(name, tmp_path):
    weights = weights_of(MODELS[name])
    write_huggingface(weights, tmp_path / "out")
    back = read_huggingface(tmp_path / "out")
    assert back.model == weights.model
    assert same(back.arrays, weights.arrays)
    write_huggingface(back, tmp_path / "again")
    assert same(stored(tmp_path / "again"), stored(tmp_path / "out"))
    assert settings(tmp_path / "again") == settings(tmp_path / "out")


def transformers_model(directory: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        directory, output_loading_info=True
    )
    assert not any(report.values()), report  # nothing missing, nothing left over, nothing resized
    return model.eval()


def logits_of(weights: Weights, tokens: np.ndarray) -> np.ndarray:
    params = as_tree({name: jnp.asarray(array) for name, array in weights.arrays.items()})
    logits = jax.jit(GPT(weights.model).apply)({"params": params}, jnp.asarray(tokens))
    return np.asarray(logits)[..., : weights.model.n_vocab]


@pytest.mark.parametrize("name", MODELS)
def test_transformers_loads_it_and_computes_the_same_logits(name, tmp_path):
    weights = weights_of(MODELS[name])
    write_huggingface(weights, tmp_path / "out")
    model = transformers_model(tmp_path / "out")
    import torch

    tokens = np.random.default_rng(1).integers(0, 257, (2, 24))
    with torch.no_grad():
        theirs = model(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(theirs, logits_of(weights, tokens), atol=1e-4)


@pytest.mark.parametrize(
    "name", ["gpt2", "gpt1", "untied", "gpt1, untied", "more rows than tokens"]
)
def test_what_transformers_saved_comes_in_and_out_without_a_change(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    sizes = {"n_layer": 3, "n_head": 5, "n_embd": 40, "n_positions": 24, "vocab_size": 320}
    tied = {"tie_word_embeddings": "untied" not in name}
    if name.startswith("gpt1"):
        theirs = transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig(**sizes, **tied))
    else:
        theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **tied))
    (tmp_path / "theirs").mkdir()
    ids = 290 if name == "more rows than tokens" else 320
    ranks = {bytes([byte]): byte for byte in range(256)}
    ranks |= {b"a" * n: 254 + n for n in range(2, ids - 255)}
    write_tokenizer_files(BPETokenizer(f"bpe:{ids}", ranks), tmp_path / "theirs", 24)
    theirs.save_pretrained(tmp_path / "theirs")
    write_huggingface(read_huggingface(tmp_path / "theirs"), tmp_path / "out")
    assert same(stored(tmp_path / "out"), stored(tmp_path / "theirs"))
    before, after = settings(tmp_path / "theirs"), settings(tmp_path / "out")
    known = set(before) - {"bos_token_id", "eos_token_id", "dtype", "transformers_version"}
    known = {field for field in known if not field.startswith("summary_") and field in after}
    assert {field: after[field] for field in known} == {field: before[field] for field in known}


def trained_bpe(ids: int) -> BPETokenizer:
    ranks = {bytes([byte]): byte for byte in range(256)}
    ranks |= {b"a" * n: 254 + n for n in range(2, ids - 255)}
    return BPETokenizer(f"bpe:{ids}", ranks)


def test_rows_after_the_ids_of_our_own_tokenizer_file_come_out_again(tmp_path):
    weights = replace(weights_of(replace(GPT2, n_vocab=320)), tokenizer=trained_bpe(300))
    write_huggingface(weights, tmp_path / "theirs")
    (tmp_path / "theirs" / "tokenizer.json").write_text(weights.tokenizer.to_json())
    back = read_huggingface(tmp_path / "theirs")
    assert (back.model.n_vocab, back.tokenizer.n_vocab, back.notes) == (320, 320, ())
    assert back.tokenizer.eot_id == 299
    write_huggingface(back, tmp_path / "out")
    assert same(stored(tmp_path / "out"), stored(tmp_path / "theirs"))


def test_an_added_token_is_named_and_its_row_comes_out_again(tmp_path):
    weights = replace(weights_of(replace(GPT2, n_vocab=301)), tokenizer=trained_bpe(300))
    write_huggingface(weights, tmp_path / "theirs")
    path = tmp_path / "theirs" / "tokenizer.json"
    assert read_huggingface(tmp_path / "theirs").notes == ()
    table = json.loads(path.read_text())
    table["added_tokens"].append({"id": 300, "content": "[PAD]", "special": True})
    path.write_text(json.dumps(table))
    back = read_huggingface(tmp_path / "theirs")
    assert "adds [PAD], which gptjax reads as plain text" in back.notes[0]
    write_huggingface(back, tmp_path / "out")
    assert same(stored(tmp_path / "out"), stored(tmp_path / "theirs"))


def test_the_config_has_what_older_and_newer_readers_look_for(tmp_path):
    write_huggingface(weights_of(GPT2), tmp_path / "out")
    expected = {"model_type": "gpt2", "vocab_size": 257, "n_ctx": 24, "n_positions": 24}
    expected |= {"activation_function": "gelu_new", "eos_token_id": 256, "bos_token_id": 256}
    expected |= {"tie_word_embeddings": True, "torch_dtype": "float32", "n_inner": None}
    found = settings(tmp_path / "out")
    assert {field: found[field] for field in expected} == expected
    with safe_open(tmp_path / "out" / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 256, "eos_token_id": 256, "pad_token_id": 256}


def test_absent_biases_are_zeros_there_and_the_user_is_told(tmp_path):
    notes = write_huggingface(weights_of(MODELS["no bias"]), tmp_path / "out")
    assert not stored(tmp_path / "out")["transformer.h.1.attn.c_attn.bias"].any()
    assert any("wrote zeros" in note and "h/attn/c_attn/bias" in note for note in notes)


def test_bfloat16_is_rounded_to_the_nearest(tmp_path):
    torch = pytest.importorskip("torch")
    weights = weights_of(GPT2)
    write_huggingface(weights, tmp_path / "out", "bfloat16")
    model = transformers_model(tmp_path / "out")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    expected = torch.tensor(weights.arrays["wpe/embedding"]).to(torch.bfloat16)
    assert torch.equal(model.transformer.wpe.weight, expected)
    back = read_huggingface(tmp_path / "out").arrays["wpe/embedding"]
    np.testing.assert_array_equal(back, expected.float().numpy())


def gpt1_weights(**others: Any) -> Weights:
    """A tiny GPT-1 with its published number of ids, whose special tokens have rows."""
    model = replace(GPT1, n_layer=1, n_head=1, n_embd=2, n_ctx=4, n_vocab=40478)
    made = weights_of(model, **others)
    made.arrays["wte/embedding"][40478:40481] = [[1, 2], [3, 4], [5, 6]]
    tokens = ["<unk>", *(f"w{i}</w>" for i in range(40476)), "\n</w>"]
    return replace(made, tokenizer=GPT1Tokenizer(tokens, []))


def test_gpt1_s_special_tokens_leave_only_with_a_task_that_uses_them(tmp_path):
    write_huggingface(gpt1_weights(), tmp_path / "plain")
    assert settings(tmp_path / "plain")["vocab_size"] == 40478
    special = gpt1_weights(task="classify")
    special = replace(special, model=replace(special.model, n_special=3))
    write_huggingface(special, tmp_path / "special")
    assert settings(tmp_path / "special")["vocab_size"] == 40481
    rows = stored(tmp_path / "special")["transformer.tokens_embed.weight"]
    assert rows[40478:].tolist() == [[1, 2], [3, 4], [5, 6]]
    back = read_huggingface(tmp_path / "special")
    assert (back.task, same(back.arrays, special.arrays)) == ("classify", True)
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "special")
    ids = tokenizer("_start_w3 w4_classify_")["input_ids"]
    assert [ids[0], ids[-1]] == [SPECIAL_TOKENS["_start_"], SPECIAL_TOKENS["_classify_"]]


@pytest.mark.parametrize(
    ("model", "reader", "reason"),
    [
        (replace(GPT2, final_norm=False), "transformers", "norms before .* without a final norm"),
        (replace(GPT1, final_norm=True), "transformers", "norms after .* with a final norm"),
        (replace(GPT1, activation="gelu_erf"), "transformers", "tanh form of GELU only"),
        (replace(GPT2, tied_head=False), "vllm", "ties the head of a GPT-2"),
        (GPT1, "vllm", "has no GPT-1"),
        (GPT2, "llama.cpp", "knows GPT-2's own only, not bytes"),
    ],
)
def test_what_a_reader_would_serve_wrongly_is_refused(model, reader, reason, tmp_path):
    with pytest.raises(UserError, match=reason):
        write_huggingface(weights_of(model), tmp_path / "out", reader=reader)
    assert list(tmp_path.iterdir()) == []


def test_the_limits_of_other_readers_stand_in_the_card(tmp_path):
    notes = write_huggingface(weights_of(MODELS["untied"]), tmp_path / "out")
    warned = [note for note in notes if "do not serve it with" in note]
    assert [next(r for r in READERS if r in note) for note in warned] == ["vllm", "llama.cpp"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert all(note in card for note in warned)
    assert list(reasons_against("transformers", GPT2, ByteTokenizer())) == []


def test_characters_without_an_end_of_text_stay_without_one(tmp_path):
    model = replace(GPT2, n_vocab=3)
    weights = replace(weights_of(model), tokenizer=CharTokenizer("abc"))
    write_huggingface(weights, tmp_path / "out")
    assert settings(tmp_path / "out")["eos_token_id"] is None
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (len(tokenizer), tokenizer.eos_token) == (3, None)
    back = read_huggingface(tmp_path / "out")
    assert (back.model.n_vocab, fingerprint(back.tokenizer)) == (3, fingerprint(weights.tokenizer))


def test_only_an_empty_place_is_written_to(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    write_huggingface(weights_of(GPT2), out)
    with pytest.raises(UserError, match="not empty"):
        write_huggingface(weights_of(GPT2), out)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is not a directory"):
        write_huggingface(weights_of(GPT2), tmp_path / "file")


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface_writing, "write_safetensors", fail)
    with pytest.raises(OSError, match="No space"):
        write_huggingface(weights_of(GPT2), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_large_models_are_several_files_with_an_index(tmp_path):
    weights = weights_of(GPT2)
    write_huggingface(weights, tmp_path / "out")
    arrays = stored(tmp_path / "out")
    (tmp_path / "out" / "model.safetensors").unlink()
    total = write_safetensors(arrays, tmp_path / "out", largest=60_000)
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    sizes = {
        file: sum(arrays[n].nbytes for n, place in index["weight_map"].items() if place == file)
        for file in files
    }
    assert max(sizes.values()) <= 60_000
    assert index["metadata"]["total_size"] == total == sum(a.nbytes for a in arrays.values())
    assert same(read_huggingface(tmp_path / "out").arrays, weights.arrays)
    found = transformers_model(tmp_path / "out").state_dict()["transformer.h.2.mlp.c_fc.weight"]
    np.testing.assert_array_equal(found, arrays["transformer.h.2.mlp.c_fc.weight"])


def test_every_switch_of_a_model_is_somewhere_in_its_directory(tmp_path):
    speed = {"dtype", "float32_matmul", "attention", "remat", "unroll"}
    fields = {field.name for field in dataclasses.fields(ModelConfig)} - speed
    for model in MODELS.values():
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        write_huggingface(weights_of(model), out)
        back = read_huggingface(out).model
        assert {f: getattr(back, f) for f in fields} == {f: getattr(model, f) for f in fields}
