"""The table of leaves is the model's own: every parameter, decided in every column.

The readers of a column (counts, decay, Muon, the division over devices) have their own tests.
"""

import itertools
import math

import pytest

from gptjax.base.tree import named_leaves
from gptjax.config import ModelConfig
from gptjax.model.gpt import parameter_shapes
from gptjax.model.places import (
    FSDP,
    TENSOR,
    Leaf,
    ModelSharding,
    axes_of,
    is_block_matrix,
    is_decayed,
    leaves,
)
from gptjax.model.size import parameter_count

SWITCHES = {
    "qkv_bias": (True, False),
    "bias": (True, False),
    "tied_head": (True, False),
    "final_norm": (True, False),
    "norm": ("pre", "post"),
}
VARIANTS = [dict(zip(SWITCHES, v, strict=True)) for v in itertools.product(*SWITCHES.values())]
SIZES = {"n_layer": 3, "n_head": 2, "n_embd": 16, "n_ctx": 24, "n_vocab": 130}
KERNELS = [f"h/{name}/kernel" for name in ("attn/c_attn", "attn/c_proj", "mlp/c_fc", "mlp/c_proj")]


@pytest.mark.parametrize("switches", VARIANTS, ids=lambda s: "-".join(map(str, s.values())))
def test_the_table_is_the_model_s_own_tree(switches):
    cfg = ModelConfig(**SIZES, **switches)
    model = {name: leaf.shape for name, leaf in named_leaves(parameter_shapes(cfg)).items()}
    table = leaves(cfg)
    assert len(table) == len(model)
    assert {leaf.name: leaf.shape for leaf in table} == model
    padding = (256 - 130) * 16 * (1 if cfg.tied_head else 2)
    assert parameter_count(cfg) == sum(map(math.prod, model.values())) - padding
    for leaf in table:
        assert len(leaf.axes) in (0, len(leaf.shape)), leaf.name
        assert axes_of(leaf.name) == leaf.axes
        assert is_decayed(leaf.name) is leaf.is_decayed
        assert is_block_matrix(leaf.name) is leaf.is_block_matrix
        assert ("{}" in leaf.huggingface) is leaf.name.startswith("h/")
    assert len({leaf.huggingface for leaf in table}) == len(table)


def names_where(column: str) -> set[str]:
    table = leaves(ModelConfig(**SIZES, tied_head=False))
    return {leaf.name for leaf in table if getattr(leaf, column)}


def test_every_column_says_what_it_should():
    tables = {"wte/embedding", "wpe/embedding", "lm_head"}
    assert names_where("is_block_matrix") == {*KERNELS}
    assert names_where("is_decayed") == {*KERNELS} | tables
    assert names_where("is_matrix") == {*KERNELS} | tables
    assert names_where("axes") == {*KERNELS} | tables | {"h/mlp/c_fc/bias"}
    assert names_where("padding") == {"wte/embedding", "lm_head"}


def test_what_a_device_has_of_a_leaf():
    kernel = Leaf("k", (3, 16, 64), (None, FSDP, TENSOR), True, True, "")
    assert kernel.part(ModelSharding(4, 2)) * 8 == kernel.elements == 3 * 16 * 64
    assert kernel.part(ModelSharding(4, 2), TENSOR) * 2 == kernel.elements
    assert ModelSharding(4, 1).place("h/mlp/c_fc/kernel") == (None, FSDP, None)


@pytest.mark.parametrize("name", ["lora_a", "kernels", "h/mlp/kernel", "h/ln_1", "ln_f/kernel", ""])
@pytest.mark.parametrize("column", [axes_of, is_decayed, is_block_matrix, ModelSharding().place])
def test_a_name_that_is_not_in_the_table_is_refused(column, name):
    with pytest.raises(ValueError, match=f"parameter {name} is not in the table"):
        column(name)


@pytest.mark.parametrize(
    ("expected", "n_layer", "n_head", "n_embd", "others"),
    [
        (124_439_808, 12, 12, 768, {}),
        (163_037_184, 12, 12, 768, {"tied_head": False}),
        (354_823_168, 24, 16, 1024, {}),
        (774_030_080, 36, 20, 1280, {}),
        (1_557_611_200, 48, 25, 1600, {}),
        (124_412_160, 12, 12, 768, {"qkv_bias": False}),
        (163_009_536, 12, 12, 768, {"qkv_bias": False, "tied_head": False}),
        (116_534_784, 12, 12, 768, {"n_ctx": 512, "n_vocab": 40478, "norm": "post",
                                    "final_norm": False}),
    ],
)  # fmt: skip
def test_parameter_counts_are_the_published_ones(expected, n_layer, n_head, n_embd, others):
    cfg = ModelConfig(n_layer, n_head, n_embd, **{"n_ctx": 1024, "n_vocab": 50257} | others)
    assert parameter_count(cfg) == expected


def test_a_vocabulary_that_is_not_known_yet_counts_nothing():
    known, unknown = (ModelConfig(**SIZES | {"n_vocab": n}) for n in (130, None))
    assert parameter_count(known) - parameter_count(unknown) == 130 * 16
