"""Names of the table and Hugging Face's, there and back."""

import numpy as np
import pytest

from gptjax.base.errors import UserError
from gptjax.config import ModelConfig
from gptjax.conversion.weights import from_huggingface, to_huggingface
from gptjax.model.places import leaves

CFG = ModelConfig(n_layer=2, n_head=2, n_embd=8, n_ctx=6, n_vocab=9, tied_head=False)


def random_arrays(cfg: ModelConfig) -> dict[str, np.ndarray]:
    """Random arrays under our names, with zeros where rows only pad."""
    chance, arrays = np.random.default_rng(0), {}
    for leaf in leaves(cfg):
        arrays[leaf.name] = chance.normal(size=leaf.shape).astype(np.float32)
        arrays[leaf.name][len(arrays[leaf.name]) - leaf.padding :] = 0
    return arrays


def test_there_and_back_nothing_changes():
    ours = random_arrays(CFG)
    theirs = to_huggingface(ours, CFG)
    assert theirs["transformer.h.1.attn.c_attn.weight"].shape == (8, 24)
    assert theirs["lm_head.weight"].shape == (9, 8)
    back = from_huggingface(theirs, CFG, "here")
    assert all((back[name] == ours[name]).all() for name in ours)


def test_every_array_that_does_not_fit_is_listed():
    theirs = to_huggingface(random_arrays(CFG), CFG)
    del theirs["transformer.h.0.ln_1.bias"]
    theirs["transformer.wpe.weight"] = np.zeros((5, 8))
    theirs["transformer.h.2.ln_1.bias"] = np.zeros(8)
    with pytest.raises(UserError) as caught:
        from_huggingface(theirs, CFG, "the file")
    assert str(caught.value).splitlines() == [
        "the arrays of the file do not fit its config:",
        "  - transformer.wpe.weight is (5, 8), expected (6, 8)",
        "  - transformer.h.0.ln_1.bias (8,) is missing",
        "  - transformer.h.2.ln_1.bias is not an array of this model",
    ]


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_hugging_face_has_the_same_leaves_under_the_table_s_names(norm):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    sizes = {"n_layer": 3, "n_head": 2, "n_embd": 16, "n_positions": 24, "vocab_size": 130}
    if norm == "pre":
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))
    else:
        model = transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig(**sizes))
    names = {name for name, _ in model.named_parameters()}
    theirs = {name: array.numpy() for name, array in model.state_dict().items() if name in names}
    cfg = ModelConfig(
        n_layer=3, n_head=2, n_embd=16, n_ctx=24, n_vocab=130, norm=norm, final_norm=norm == "pre"
    )
    ours = from_huggingface(theirs, cfg, "here")
    assert {name: x.shape for name, x in ours.items()} == {x.name: x.shape for x in leaves(cfg)}
    back = to_huggingface(ours, cfg)
    assert back.keys() == theirs.keys()
    assert all((back[name] == theirs[name]).all() for name in theirs)
