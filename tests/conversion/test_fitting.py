"""A preset's shape and tokenizer give way to a model's; its settings of training do not."""

from dataclasses import replace

import pytest

from gptjax.base.errors import ConfigError
from gptjax.config import Config, ModelConfig
from gptjax.config.origins import SHAPE, Origins
from gptjax.config.presets import load_config, preset_names
from gptjax.config.schema import CLASSIFY, INSTRUCT
from gptjax.config.validation import find_problems
from gptjax.conversion.fitting import changed_settings, fitted
from gptjax.conversion.shapes import Source
from gptjax.tokenizers.plain import ByteTokenizer, collect_characters

MODEL = ModelConfig(
    n_layer=3, n_head=5, n_embd=40, n_ctx=64, n_vocab=257, norm="post", final_norm=False,
    qkv_bias=False, tied_head=False, embd_pdrop=0.3, dtype="float16", unroll=3,
)  # fmt: skip
SOURCE = Source("runs/x", MODEL, ByteTokenizer(), "bytes")
PRESET = Config(model=ModelConfig(n_vocab=50257, unroll=12, resid_pdrop=0.1))


def typed(**model: object) -> tuple[Config, set[str]]:
    """The preset with typed fields of its model."""
    return replace(PRESET, model=replace(PRESET.model, **model)), {f"model.{n}" for n in model}


def test_the_shape_is_the_models_and_the_settings_are_the_presets():
    config = fitted(PRESET, SOURCE, ())
    assert {n: getattr(config.model, n) for n in SHAPE} == {n: getattr(MODEL, n) for n in SHAPE}
    kept = (config.model.embd_pdrop, config.model.resid_pdrop, config.model.dtype)
    assert kept == (0.0, 0.1, "bfloat16")
    assert (config.model.unroll, config.data.tokenizer) == (3, "bytes")
    assert changed_settings(MODEL, config.model) == [
        "embd_pdrop 0.3 -> 0.0", "resid_pdrop 0.0 -> 0.1", "dtype float16 -> bfloat16",
    ]  # fmt: skip


@pytest.mark.parametrize("name", preset_names())
def test_any_preset_starts_from_any_model(name):
    preset = load_config(name)
    for model in (MODEL, replace(MODEL, n_ctx=1024), replace(MODEL, n_ctx=4096, n_layer=1)):
        config = fitted(preset, SOURCE._replace(model=model), ())
        assert find_problems(config) == []
        is_padded = preset.task in (CLASSIFY, INSTRUCT)
        assert config.context == (model.n_ctx if is_padded else min(preset.context, model.n_ctx))
        assert config.model.n_ctx == model.n_ctx
        assert fitted(preset, SOURCE._replace(model=config.model), ()) == config


def test_packed_rows_are_no_longer_than_the_presets_unless_that_is_typed():
    preset = load_config("instruct_lora")
    packed = replace(preset, instruct=replace(preset.instruct, lengths="pack"))
    source = SOURCE._replace(model=replace(MODEL, n_ctx=1024))
    assert fitted(packed, source, ()).context == preset.context
    wider = replace(packed, train=replace(packed.train, context=512))
    assert fitted(wider, source, ("train.context",)).context == 512
    assert fitted(wider, source, ()).context == 512  # a preset's own


@pytest.mark.parametrize(
    ("flags", "n_ctx", "context"),
    [
        ({}, 64, 64),
        ({"n_ctx": 256}, 256, 256),
        ({"n_ctx": 32}, 32, 32),
        ({"context": 128}, 128, 128),
        ({"context": 32}, 64, 32),
        ({"context": 32, "n_ctx": 48}, 48, 32),
    ],
)
def test_only_a_typed_context_changes_the_positions(flags, n_ctx, context):
    model = replace(PRESET.model, n_ctx=flags.get("n_ctx", 1024))
    train = replace(PRESET.train, context=flags.get("context"))
    names = {"n_ctx": "model.n_ctx", "context": "train.context"}
    given = {names[flag] for flag in flags}
    config = fitted(replace(PRESET, model=model, train=train), SOURCE, given)
    assert (config.model.n_ctx, config.context) == (n_ctx, context)
    again = fitted(
        replace(PRESET, model=model, train=train), SOURCE._replace(model=config.model), given
    )
    assert again == config  # as a resumed run has it, whose own shape is the source


def test_a_typed_flag_of_another_shape_is_refused_with_the_leaves_that_differ():
    config, names = typed(n_layer=2, tied_head=True, n_head=5, dtype="float32")
    with pytest.raises(ConfigError) as caught:
        fitted(config, SOURCE, names)
    (problem,) = caught.value.problems
    lines = [line.split() for line in problem.splitlines()]
    assert ["--model.n-layer", "2,", "there", "3"] in lines
    assert ["--model.tied-head", "True,", "there", "False"] in lines
    leaf = ["h/attn/c_attn/kernel", "3", "x", "40", "x", "120", "2", "x", "40", "x", "120"]
    assert leaf in lines
    assert ["lm_head", "384", "x", "40", "none"] in lines
    assert "n-head" not in problem
    assert "wte" not in problem


def test_a_switch_without_leaves_is_refused_too():
    for flags, words in (({"n_head": 8}, r"n-head 8, there 5"), ({"norm": "pre"}, "norm pre, ")):
        config, names = typed(**flags)
        with pytest.raises(
            ConfigError, match=rf"computes something else than typed:\s+--.*{words}"
        ):
            fitted(config, SOURCE, names)


def test_activation_and_initial_scale_may_be_typed():
    config, names = typed(activation="gelu_erf", scale_residual_init=False, n_head=5)
    model = fitted(config, SOURCE, names).model
    assert model == replace(
        fitted(PRESET, SOURCE, ()).model, activation="gelu_erf", scale_residual_init=False
    )


@pytest.mark.parametrize("name", ["gpt2", "bpe:500", "chars", "bytes", None])
def test_a_typed_tokenizer_is_the_models(name):
    config = replace(PRESET, data=replace(PRESET.data, tokenizer=name))
    if name in ("bytes", None):
        assert fitted(config, SOURCE, {"data.tokenizer"}).data.tokenizer == name
        return
    with pytest.raises(ConfigError, match=r"is another tokenizer than .* \(bytes, 257 ids\)"):
        fitted(config, SOURCE, {"data.tokenizer"})


def test_a_typed_file_of_a_tokenizer_is_compared_by_its_content(tmp_path):
    own, other = collect_characters(["abc"]), collect_characters(["abd"])
    source = SOURCE._replace(tokenizer=own, tokenizer_name=None)
    for tokenizer, fits in ((own, True), (other, False)):
        file = tmp_path / "tokenizer.json"
        file.write_text(tokenizer.to_json())
        config = replace(PRESET, data=replace(PRESET.data, tokenizer=str(file)))
        if fits:
            assert fitted(config, source, {"data.tokenizer"}).data.tokenizer == str(file)
        else:
            with pytest.raises(ConfigError, match=r"--tokenizer RUN/tokenizer\.json"):
                fitted(config, source, {"data.tokenizer"})


def test_rematerialisation_keeps_a_loop_over_fewer_layers():
    config = replace(PRESET, model=replace(PRESET.model, remat="block", unroll=6))
    assert fitted(config, SOURCE, ()).model.unroll == 1
    assert fitted(config, SOURCE, {"model.unroll"}).model.unroll == 6


def test_a_message_says_that_a_value_came_with_the_model():
    train = replace(PRESET.train, init_from="runs/x")
    config = fitted(replace(PRESET, train=train), SOURCE, ())
    said = Origins(config, frozenset({"train.init_from"}), "own").explain("model.n_layer is odd")
    assert said == "model.n_layer is odd (--model.n-layer 3 from --train.init-from runs/x)"
