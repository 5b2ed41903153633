"""nanoGPT's checkpoints: the same logits, the same numbers there and back, one error otherwise."""

import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptjax.base.errors import UserError
from gptjax.base.tree import as_tree
from gptjax.conversion.nanogpt import is_nanogpt, read_nanogpt
from gptjax.conversion.weights import Weights, to_huggingface
from gptjax.model.gpt import GPT

torch = pytest.importorskip("torch")
from nanogpt_model import Args, NanoGPT

LETTERS = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"  # 65, Shakespeare's
MATRICES = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


def write_meta(path: Path, letters: str = LETTERS) -> Path:
    """What nanoGPT's prepare.py of characters leaves."""
    table = {"vocab_size": len(letters), "itos": dict(enumerate(letters))}
    table["stoi"] = {letter: i for i, letter in enumerate(letters)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(table))
    return path


def state_of(weights: Weights, rows: int) -> dict:
    """The way back: a state for nanoGPT's own class."""
    theirs = to_huggingface(weights.arrays, weights.model, rows)
    state = {
        name: torch.tensor(array.T if name.endswith(MATRICES) else array)
        for name, array in theirs.items()
    }
    return {**state, "lm_head.weight": state["transformer.wte.weight"]}


@pytest.mark.parametrize("bias", [True, False])
def test_logits_are_nanogpt_s_and_the_way_back_is_bitwise(tmp_path: Path, bias: bool):
    model = NanoGPT(Args(bias=bias, dropout=0.2))
    file = model.save(tmp_path / "ckpt.pt", prefix="" if bias else "_orig_mod.")
    write_meta(tmp_path / "meta.pkl")
    assert is_nanogpt(file)
    assert is_nanogpt(tmp_path)
    weights = read_nanogpt(tmp_path if bias else file, None)

    cfg = weights.model
    assert (cfg.n_layer, cfg.n_head, cfg.n_embd, cfg.n_ctx, cfg.n_vocab) == (3, 5, 40, 24, 65)
    assert (cfg.bias, cfg.qkv_bias, cfg.tied_head) == (bias, bias, True)
    assert (cfg.activation, cfg.embd_pdrop, cfg.resid_pdrop) == ("gelu_erf", 0.2, 0.2)
    assert weights.tokenizer.encode("\nz").tolist() == [0, 64]
    assert "no end-of-text" in weights.notes[0]

    ids = np.random.default_rng(0).integers(65, size=(2, 24))
    logits = GPT(cfg).apply({"params": as_tree(weights.arrays)}, ids)
    with torch.no_grad():
        expected = model.eval()(torch.tensor(ids)).numpy()
    np.testing.assert_allclose(logits[:, :, :65], expected, rtol=0, atol=1e-5)

    back = NanoGPT(Args(bias=bias))
    back.load_state_dict(state_of(weights, 65))
    theirs, ours = model.state_dict(), back.state_dict()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


def test_the_source_says_how_far_it_was_trained_and_what_was_dropped(tmp_path: Path):
    file = NanoGPT(Args(vocab_size=320)).save(tmp_path / "ckpt.pt")
    weights = read_nanogpt(file, "bytes")
    assert weights.model.n_vocab == 257
    assert weights.arrays["wte/embedding"].shape == (384, 40)
    assert not weights.arrays["wte/embedding"][257:].any()
    assert "iteration 2,000, best validation loss 1.4697" in weights.source
    (note,) = weights.notes
    assert "the last 63 of 320 rows" in note


def test_characters_are_found_where_nanogpt_finds_them(tmp_path: Path):
    out = tmp_path / "out-shakespeare-char"
    out.mkdir()
    NanoGPT(Args()).save(out / "ckpt.pt")
    write_meta(tmp_path / "data" / "shakespeare_char" / "meta.pkl", LETTERS[::-1])
    assert read_nanogpt(out, None).tokenizer.encode("z").tolist() == [0]
    # beside the checkpoint comes first, and what is given comes before both
    write_meta(out / "meta.pkl")
    assert read_nanogpt(out, None).tokenizer.encode("z").tolist() == [64]
    given = write_meta(tmp_path / "other.pkl", LETTERS[1:] + LETTERS[0])
    assert read_nanogpt(out, str(given)).tokenizer.encode("z").tolist() == [63]


def test_gpt2_s_vocabulary_needs_no_tokenizer(tmp_path: Path, test_data: Path, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(test_data / "tiktoken_cache"))
    args = Args(n_layer=1, n_head=1, n_embd=2, block_size=2, vocab_size=50304)
    model = NanoGPT(args)
    weights = read_nanogpt(model.save(tmp_path / "ckpt.pt"), None)
    assert (weights.tokenizer.name, weights.model.n_vocab) == ("gpt2", 50257)
    table = model.state_dict()["transformer.wte.weight"].numpy()
    assert (weights.arrays["wte/embedding"][:50257] == table[:50257]).all()
    assert not weights.arrays["wte/embedding"][50257:].any()


def test_an_untied_head_masks_half_precision_and_old_files_are_read(tmp_path: Path):
    model = NanoGPT(Args())
    checkpoint = model.checkpoint("_orig_mod.module.")
    head = torch.randn(65, 40)
    checkpoint["model"]["lm_head.weight"] = head
    del checkpoint["model"]["_orig_mod.module.lm_head.weight"]
    checkpoint["model"] = {name: tensor.half() for name, tensor in checkpoint["model"].items()}
    checkpoint["model"]["transformer.h.0.attn.bias"] = torch.ones(1, 1, 24, 24)
    del checkpoint["model_args"]["bias"], checkpoint["model_args"]["dropout"]
    file = tmp_path / "ckpt.pt"
    torch.save(checkpoint, file, _use_new_zipfile_serialization=False)
    write_meta(tmp_path / "meta.pkl")
    assert is_nanogpt(file)
    weights = read_nanogpt(file, None)
    assert not weights.model.tied_head
    assert (weights.arrays["lm_head"][:65] == head.half().float().numpy()).all()


class Hostile:
    def __reduce__(self) -> tuple:
        return (os.mkdir, ("made",))


def without(checkpoint: dict, name: str) -> dict:
    """The checkpoint's state without one array."""
    return {key: tensor for key, tensor in checkpoint["model"].items() if key != name}


def test_mistakes_are_one_message_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    model, file = NanoGPT(Args()), tmp_path / "ckpt.pt"
    good = model.checkpoint()
    state, args = good["model"], good["model_args"]
    vast = torch.zeros(1).expand(10**12)
    wrong = {
        "'posix.mkdir' when it is loaded": {**good, "config": Hostile()},
        "found \\['model'\\]": {"model": state},
        "found list": [1],
        "found int": 1,
        "n_embd '40'": {**good, "model_args": {**args, "n_embd": "40"}},
        "n_layer 0": {**good, "model_args": {**args, "n_layer": 0}},
        "n_head 7, which does not divide": {**good, "model_args": {**args, "n_head": 7}},
        "dropout nan": {**good, "model_args": {**args, "dropout": float("nan")}},
        "bias None": {**good, "model_args": {**args, "bias": None}},
        "describe .* parameters": {**good, "model_args": {**args, "n_layer": 10**15}},
        "h.1.ln_1.weight \\(40,\\) is missing": {
            **good, "model": without(good, "transformer.h.1.ln_1.weight")
        },
        "wpe.weight is \\(24, 40\\)": {**good, "model_args": {**args, "block_size": 30}},
        "h.0.attn.c_attn.bias is not": {**good, "model_args": {**args, "bias": False}},
        "'transformer.x' is not a dense tensor": {**good, "model": {"transformer.x": vast}},
        "'3' is not a dense tensor": {**good, "model": {3: torch.ones(2, dtype=torch.int64)}},
        "'y' is not a dense tensor": {**good, "model": {"y": torch.eye(2).to_sparse()}},
    }  # fmt: skip
    write_meta(tmp_path / "meta.pkl")
    for message, content in wrong.items():
        torch.save(content, file)
        with pytest.raises(UserError, match=message):
            read_nanogpt(file, None)
    assert not (tmp_path / "made").exists()


def test_a_tokenizer_that_is_missing_or_does_not_fit_is_named(tmp_path: Path):
    file = NanoGPT(Args()).save(tmp_path / "ckpt.pt")
    with pytest.raises(UserError, match=r"65 token ids.* give\s--tokenizer"):
        read_nanogpt(file, None)
    with pytest.raises(UserError, match=r"--tokenizer bytes has 257 token ids, but .* has 65"):
        read_nanogpt(file, "bytes")
    with pytest.raises(UserError, match=r"meta\.pkl has 4 token ids"):
        read_nanogpt(file, str(write_meta(tmp_path / "x" / "meta.pkl", "abc")))


def test_files_that_are_not_torch_s_are_said_to_be_so(tmp_path: Path):
    file = tmp_path / "ckpt.pt"
    whole = NanoGPT(Args()).save(file).read_bytes()
    contents = {
        b"": "not a file of torch.save or was cut short",
        whole[: len(whole) // 2]: "not a file of torch.save or was cut short",
        b"version https://git-lfs.github.com/spec/v1\noid": "pointer of git-lfs",
        pickle.dumps({"model": 1}): "not a file of torch.save:",
    }
    for content, message in contents.items():
        file.write_bytes(content)
        assert not is_nanogpt(file)
        with pytest.raises(UserError, match=message):
            read_nanogpt(file, None)
    with pytest.raises(UserError, match="cannot read"):
        read_nanogpt(tmp_path / "nothing.pt", None)
    assert not is_nanogpt(tmp_path / "nothing.pt")


def test_without_torch_the_message_says_how_to_get_it(tmp_path: Path, monkeypatch):
    file = NanoGPT(Args()).save(tmp_path / "ckpt.pt")
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    assert is_nanogpt(file)
    with pytest.raises(UserError, match="pip install torch"):
        read_nanogpt(file, None)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a small checkpoint `whole` and its characters."""
    path = tmp_path_factory.mktemp("damaged")
    model = NanoGPT(Args(n_layer=1, n_head=1, n_embd=2, block_size=2, vocab_size=3))
    write_meta(path / "meta.pkl", "abc")
    model.save(path / "whole")
    return path


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), kind=st.sampled_from(["cut", "flip", "rubbish"]))
def test_damage_is_one_error_or_only_other_numbers(damaged: Path, seed: int, kind: str):
    chance, content = random.Random(seed), bytearray((damaged / "whole").read_bytes())
    if kind == "cut":
        del content[chance.randrange(len(content)) :]
    for _ in range({"cut": 0, "flip": chance.choice((1, 2, 8)), "rubbish": 200}[kind]):
        content[chance.randrange(len(content))] = chance.randrange(256)
    (damaged / "ckpt.pt").write_bytes(content)
    is_nanogpt(damaged)
    try:
        weights = read_nanogpt(damaged, None)
    except UserError:
        return
    assert weights.model.n_vocab == 3
    assert all(array.dtype == np.float32 for array in weights.arrays.values())
