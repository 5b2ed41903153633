"""OpenAI's files of GPT-1, made here from a random model by their documented layout."""

import json
from pathlib import Path

import numpy as np
import pytest

from gptjax.base.errors import UserError
from gptjax.config import ModelConfig
from gptjax.conversion.openai import is_openai, read_openai
from gptjax.conversion.weights import to_huggingface
from gptjax.model.places import leaves
from gptjax.model.size import parameter_count

CFG = ModelConfig(
    n_layer=2, n_head=12, n_embd=24, n_ctx=16, n_vocab=257, norm="post", final_norm=False
)
# finetune-transformer-lm, train.py: the order in which TensorFlow made the variables of a block
BLOCK = [
    ("attn.c_attn", "w b"), ("attn.c_proj", "w b"), ("ln_1", "g b"),
    ("mlp.c_fc", "w b"), ("mlp.c_proj", "w b"), ("ln_2", "g b"),
]  # fmt: skip


@pytest.fixture
def theirs() -> dict[str, np.ndarray]:
    """Random arrays under Hugging Face's names."""
    chance = np.random.default_rng(0)
    ours = {leaf.name: chance.normal(size=leaf.shape).astype(np.float32) for leaf in leaves(CFG)}
    return to_huggingface(ours, CFG)


@pytest.fixture
def directory(tmp_path: Path, theirs) -> Path:
    """Positions, tokens, blocks; flat, in ten parts; kernels as convolutions of width 1."""
    arrays = [
        theirs["transformer.positions_embed.weight"],
        theirs["transformer.tokens_embed.weight"],
    ]
    for i in range(CFG.n_layer):
        for module, variables in BLOCK:
            for variable in variables.split():
                kind = "bias" if variable == "b" else "weight"
                array = theirs[f"transformer.h.{i}.{module}.{kind}"]
                arrays.append(array[None] if variable == "w" else array)
    shapes = [list(array.shape) for array in arrays]
    flat = np.concatenate([array.ravel() for array in arrays])
    for i, part in enumerate(np.array_split(flat, 10)):
        np.save(tmp_path / f"params_{i}.npy", part)
    (tmp_path / "params_shapes.json").write_text(json.dumps(shapes))
    return tmp_path


def test_every_array_finds_its_place(directory, theirs):
    assert is_openai(directory)
    weights = read_openai(directory, "bytes")
    back = to_huggingface(weights.arrays, weights.model)
    assert back.keys() == theirs.keys()
    assert all(back[name].tobytes() == theirs[name].tobytes() for name in theirs)
    assert (weights.model.norm, weights.model.final_norm, weights.model.n_head) == (
        "post",
        False,
        12,
    )


def test_the_published_shapes_are_gpt1():
    """146 shapes and 116,534,784 numbers."""
    d, block = 768, [[1, 768, 2304], [2304], [1, 768, 768], [768], [768], [768],
                     [1, 768, 3072], [3072], [1, 3072, 768], [768], [768], [768]]  # fmt: skip
    shapes = [[512, d], [40478, d], *(block * 12)]
    assert len(shapes) == 146
    assert sum(map(np.prod, shapes)) == 116_534_784
    cfg = ModelConfig(n_vocab=40478, n_ctx=512, norm="post", final_norm=False)
    assert parameter_count(cfg) == 116_534_784


def test_the_tokenizer_must_fit(directory, test_data, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(test_data / "tiktoken_cache"))
    with pytest.raises(UserError, match=r"has 50,257 ids, but the model in .* has 257"):
        read_openai(directory, "gpt2")


def damage(directory: Path, how: str) -> None:
    part, shapes = directory / "params_3.npy", directory / "params_shapes.json"
    if how == "missing":
        part.unlink()
    elif how == "pointer":
        part.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n")
    elif how == "cut":
        part.write_bytes(part.read_bytes()[:-5])
    elif how == "pickled":
        np.save(part, np.array([{}], dtype=object))
    elif how == "float64":
        np.save(part, np.load(part).astype(np.float64))
    elif how == "short":
        np.save(part, np.load(part)[:-3])
    elif how == "zip":
        np.savez(directory / "zip.npz", np.ones(3))
        (directory / "zip.npz").rename(part)
    elif how == "header":
        part.write_bytes(part.read_bytes()[:10] + b"(" * 118)
    elif how == "no shapes":
        shapes.unlink()
    elif how == "endless":
        shapes.write_text("[[Infinity]]")
    elif how == "no list":
        shapes.write_text('{"a": 1')
    elif how == "odd list":
        shapes.write_text(json.dumps(json.loads(shapes.read_text())[:-1]))


@pytest.mark.parametrize(
    ("how", "words"),
    [("missing", "is missing"), ("pointer", "git lfs pull"), ("cut", "cut short"),
     ("pickled", "not an array"), ("float64", "holds float64"), ("short", "has room for"),
     ("zip", "not an array"), ("header", "not an array"), ("no shapes", "json is missing"),
     ("endless", "not a list of shapes"), ("no list", "not a list of shapes"),
     ("odd list", "has 25 shapes")],
)  # fmt: skip
def test_each_damage_has_one_error(directory, how, words):
    damage(directory, how)
    with pytest.raises(UserError, match=words):
        read_openai(directory, "bytes")
