"""A run that starts from a model has its parameters, bit for bit, wherever the mesh puts them."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from prepared_models import write_huggingface_model
from small_runs import tiny, trained, with_values

from gptjax.base.errors import UserError
from gptjax.base.tree import as_tree, named_leaves
from gptjax.config import Config, ModelConfig
from gptjax.config.presets import load_config
from gptjax.conversion.exporting import export_huggingface
from gptjax.conversion.opening import load_run
from gptjax.model.places import leaves
from gptjax.runs.checkpoint import Checkpointer
from gptjax.runs.directory import RunDir
from gptjax.tokenizers.plain import ByteTokenizer, collect_characters
from gptjax.training import fit
from gptjax.training.setup import Setup
from gptjax.training.state import saved_items
from gptjax.training.warm_start import announcement, warm_state

QUICK = {"train.batch_tokens": 512, "train.micro_batch": 1, "optim.warmup_steps": 1}


def drawn(config: Config, seed: int = 0) -> dict[str, np.ndarray]:
    """Random arrays under our names, those of padding too."""
    chance = np.random.default_rng(seed)
    return {
        leaf.name: chance.normal(size=leaf.shape).astype(np.float32)
        for leaf in leaves(config.model)
    }


@pytest.fixture(scope="module")
def config(prepared) -> Config:
    """The tiny config, its vocabulary known."""
    return Setup(tiny(prepared, QUICK)).config


@pytest.fixture(scope="module")
def converted(config, tmp_path_factory) -> Path:
    """A run as conversion leaves it: random parameters at step 0, an average beside them."""
    run_dir = RunDir(tmp_path_factory.mktemp("converted"))
    checkpointer = Checkpointer(run_dir.checkpoints)
    trees = {"params": as_tree(drawn(config)), "averaged": as_tree(drawn(config, seed=1))}
    cursor = {"val_loss": 2.5}
    checkpointer.save(0, jax.tree.map(jax.numpy.asarray, trees), {"model": {}}, cursor)
    checkpointer.close()
    run_dir.begin(config, ByteTokenizer())
    return run_dir.path


def started(prepared, source: object, fields: dict) -> tuple[Setup, dict, list[str]]:
    """The setup of a run that starts from `source`, its first parameters by name, and the lines."""
    made = Setup(tiny(prepared, {**QUICK, "train.init_from": str(source), **fields}))
    state, lines = warm_state(made.config, made.program, made.tokenizer)
    places = jax.tree.map(lambda x: x.sharding, state)
    assert places == made.program.places
    assert int(state.step) == 0
    assert all(not np.asarray(x).any() for x in jax.tree.leaves(state.opt_state.inner_state[1]))
    return made, {n: np.asarray(x) for n, x in named_leaves(state.params).items()}, lines


@pytest.mark.parametrize(
    "mesh", [{}, {"mesh.fsdp": 4}, {"mesh.tensor": 2}, {"mesh.fsdp": 2, "mesh.tensor": 2}], ids=str
)
def test_the_average_arrives_bit_for_bit_on_any_mesh(prepared, config, converted, mesh):
    _, params, lines = started(prepared, f"{converted}@0", mesh)
    expected = drawn(config, seed=1)
    assert params.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(params[name], array, strict=True, err_msg=name)
    assert lines[0] == (
        f"start    from {converted}, step 0 (validation loss 2.5000), the average of its "
        "parameters, with a new optimizer"
    )
    assert lines[1:] == ["leaves   16 as they are there"]


@pytest.mark.parametrize("n_ctx", [32, 96])
def test_positions_are_cut_or_extended_and_nothing_else_changes(prepared, config, converted, n_ctx):
    size = {"model.n_ctx": n_ctx, "train.batch_tokens": 8 * n_ctx}
    _, params, lines = started(prepared, converted, size)
    expected = drawn(config, seed=1)
    wpe_TD, old_TD = params.pop("wpe/embedding"), expected.pop("wpe/embedding")
    for name, array in expected.items():
        np.testing.assert_array_equal(params[name], array, err_msg=name)
    np.testing.assert_array_equal(wpe_TD[:64], old_TD[:n_ctx])
    assert wpe_TD.shape == (n_ctx, 32)
    assert lines[1] == "leaves   15 as they are there"
    assert f"wpe/embedding 64 x 32 -> {n_ctx} x 32" in lines[2]
    if n_ctx > 64:
        assert 0.018 < wpe_TD[64:].std() < 0.022
        other = {**size, "mesh.fsdp": 4}
        again = started(prepared, converted, other)[1]["wpe/embedding"]
        np.testing.assert_array_equal(again, wpe_TD)


def test_a_tokenizer_of_the_same_size_is_still_another(prepared, config, converted, tmp_path):
    shutil.copytree(converted, tmp_path, dirs_exist_ok=True)
    other = collect_characters([chr(i + 100) for i in range(256)])
    assert other.n_vocab == 257
    RunDir(tmp_path).begin(config, other)
    with pytest.raises(UserError, match=r"has the tokenizer chars .* prepare text with --tok"):
        started(prepared, tmp_path, {})


@pytest.mark.parametrize(
    ("tokenizer", "cure"),
    [
        (None, "--from models/x --out RUN`, then prepare text with --tokenizer RUN/tokenizer.json"),
        ("gpt2", "(500 ids): prepare text with --tokenizer gpt2, and give its --data.path"),
    ],
)
def test_data_of_another_tokenizer_are_refused_with_the_command_that_makes_them(
    prepared, tokenizer, cure
):
    config = tiny(prepared, {**QUICK, "train.init_from": "models/x"})
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, n_vocab=500),
        data=dataclasses.replace(config.data, tokenizer=tokenizer),
    )
    with pytest.raises(UserError, match=re.escape(cure)):
        Setup(config)


@pytest.mark.slow
def test_the_first_loss_is_that_of_the_run_or_the_export_it_comes_from(prepared, tmp_path):
    made = Setup(tiny(prepared, QUICK))
    _, state = trained(made, 3)
    run_dir = RunDir(tmp_path / "run")
    checkpointer = Checkpointer(run_dir.checkpoints)
    checkpointer.save(3, saved_items(state), dataclasses.asdict(made.config), {})
    checkpointer.close()
    run_dir.begin(made.config, made.tokenizer)
    export_huggingface(f"{run_dir.path}@3", tmp_path / "exported")

    batch = made.feed.training([made.source[3]])
    losses = [float(made.train_steps(state, batch)[1]["loss"])]
    for source in (f"{run_dir.path}@3", str(tmp_path / "exported")):
        train = dataclasses.replace(made.config.train, init_from=source, seed=5)
        config = dataclasses.replace(made.config, train=train)
        new, _ = warm_state(config, made.program, made.tokenizer)
        losses.append(float(made.train_steps(new, batch)[1]["loss"]))
    assert max(losses) - min(losses) < 1e-6
    assert max(losses) < 5.5  # trained: all steps saw the same text


@pytest.mark.slow
def test_a_run_that_is_stopped_goes_on_without_the_model_it_began_with(
    prepared, converted, tmp_path
):
    source = shutil.copytree(converted, tmp_path / "source")
    fields = {"train.init_from": str(source), "train.max_steps": 4, "train.save_every_steps": 2}
    config = tiny(prepared, {**QUICK, **fields, "optim.ema_decay": 0.9})
    short = dataclasses.replace(config, train=dataclasses.replace(config.train, max_steps=2))
    optim = dataclasses.replace(config.optim, decay_steps=4)
    config, short = (dataclasses.replace(c, optim=optim) for c in (config, short))
    assert fit.fit(config, tmp_path / "unbroken") == 0
    assert fit.fit(short, tmp_path / "broken") == 0
    shutil.rmtree(source)
    assert fit.fit(config, tmp_path / "broken") == 0
    losses, params = [], []
    for name in ("unbroken", "broken"):
        rows = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(row)["train_loss"] for row in rows])
        params.append(load_run(f"{tmp_path / name}@latest").params)
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4
    for one, other in zip(*map(jax.tree.leaves, params), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_run_does_not_start_from_its_own_directory(prepared, converted):
    config = tiny(prepared, {**QUICK, "train.init_from": f"{converted}@latest"})
    with pytest.raises(UserError, match="is the run's own directory"):
        fit.fit(config, converted, fresh=True)
    assert RunDir(converted).is_converted


@pytest.mark.parametrize("mesh", [{}, {"mesh.fsdp": 2, "mesh.tensor": 2}], ids=str)
def test_a_hugging_face_directory_arrives_bit_for_bit_on_any_mesh(prepared, config, tmp_path, mesh):
    path = write_huggingface_model(tmp_path / "hf", config.model)
    _, params, lines = started(prepared, path, mesh)
    expected = load_run(path).params
    for name, array in named_leaves(expected).items():
        np.testing.assert_array_equal(params[name], array, strict=True, err_msg=name)
    assert lines[0] == f"start    from the Hugging Face directory {path}, with a new optimizer"


def test_another_activation_is_announced(config):
    exact = dataclasses.replace(config.model, activation="gelu_erf")
    line = "         --model.activation gelu_tanh in place of the model's gelu_erf"
    assert line in announcement("a test", exact, config)
    assert line not in announcement("a test", config.model, config)


@pytest.mark.parametrize(
    ("fields", "is_high"),
    [
        ({}, True),
        ({"optim.peak_lr": 6e-5}, False),
        ({"optim.trainable_layers": 1}, False),
        ({"model.lora_rank": 4}, False),
        ({"model.n_layer": 4}, False),
    ],
    ids=str,
)
def test_a_rate_of_a_small_model_is_noted_for_a_large_one(fields, is_high):
    tuned = dataclasses.replace(load_config("instruct_alpaca"), model=ModelConfig(n_vocab=50257))
    config = with_values(tuned, fields)
    plain = dataclasses.replace(config.model, lora_rank=0)
    (*_, last) = announcement("a test", plain, config)
    assert (last.startswith("note     peak rate 1.0e-03 is high for 124M pretrained")) == is_high
    pretrained = dataclasses.replace(config, task="pretrain")
    assert not any("peak rate" in line for line in announcement("a test", plain, pretrained))
