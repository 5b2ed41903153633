"""Models by name, from a hub on this machine: only what a reader needs, once."""

import json
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from gptjax.base.errors import UserError
from gptjax.config import ModelConfig
from gptjax.conversion.hub_models import fetch_model, is_model_name
from gptjax.conversion.kinds import read_model
from gptjax.conversion.weights import to_huggingface
from gptjax.model.places import leaves
from gptjax.tokenizers.plain import ByteTokenizer

pytest.importorskip("huggingface_hub")
import numpy as np

CFG = ModelConfig(n_layer=1, n_head=2, n_embd=8, n_ctx=6, n_vocab=257)
SETTINGS = {
    "model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 8, "n_positions": 6,
    "vocab_size": 257,
}  # fmt: skip


@pytest.fixture
def model(hub, tmp_path, monkeypatch) -> Path:
    """owner/small on the hub, with files that no reader of weights needs."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    place = hub.root / "owner" / "small"
    place.mkdir(parents=True)
    arrays = {leaf.name: np.full(leaf.shape, 0.5, np.float32) for leaf in leaves(CFG)}
    save_file(to_huggingface(arrays, CFG), place / "model.safetensors")
    (place / "config.json").write_text(json.dumps(SETTINGS))
    (place / "tokenizer.json").write_text(ByteTokenizer().to_json())
    for other in ("pytorch_model.bin", "tf_model.h5", "onnx/model.safetensors"):
        (place / other).parent.mkdir(exist_ok=True)
        (place / other).write_bytes(b"large")
    return place


def test_a_model_is_fetched_by_its_name_without_what_nobody_needs(hub, model):
    weights = read_model("owner/small")
    assert weights.model.n_embd == 8
    assert (weights.arrays["wpe/embedding"] == 0.5).all()
    fetched = {path.rpartition("/")[2] for method, path, _ in hub.asked if "resolve" in path}
    assert fetched == {"model.safetensors", "config.json", "tokenizer.json"}


def test_without_safetensors_pytorch_s_file_is_fetched(hub, model):
    (model / "model.safetensors").unlink()
    assert (fetch_model("owner/small") / "pytorch_model.bin").read_bytes() == b"large"


def test_what_is_fetched_needs_no_network_any_more(hub, model, monkeypatch):
    from huggingface_hub import constants

    first = fetch_model("owner/small")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.asked)
    assert fetch_model("owner/small") == first
    assert len(hub.asked) == asked


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("owner/nothing", "the hub has no model owner/nothing"),
        ("owner/small@v9", "no such revision"),
    ],
)
def test_a_name_that_the_hub_does_not_know(hub, model, name, words):
    with pytest.raises(UserError, match=words):
        read_model(name)


def test_without_a_network_there_is_one_clear_error():
    with pytest.raises(UserError, match="the hub cannot be reached for owner/small"):
        read_model("owner/small")  # nobody is at the address that conftest.py sets


def test_a_name_is_no_path():
    names = ["gpt2", "openai-community/gpt2", "owner/name@main"]
    paths = ["./gpt2", "/gpt2", "a/b/c", "runs/", "~/gpt2", "a b"]
    assert [is_model_name(text) for text in names + paths] == [True] * 3 + [False] * 6
