"""Runs with adapters or frozen leaves: what their checkpoints hold, and how they resume."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from small_runs import announced, tiny

from gptjax.base.errors import UserError
from gptjax.base.tree import count_bytes, named_leaves
from gptjax.config import Config
from gptjax.config.validation import find_problems
from gptjax.conversion.opening import load_adapted, load_run
from gptjax.conversion.run_directory import write_run
from gptjax.conversion.weights import Weights
from gptjax.model.places import leaves
from gptjax.model.trainable import adapter_names
from gptjax.runs.directory import RunDir
from gptjax.tokenizers.plain import ByteTokenizer
from gptjax.training import fit
from gptjax.training.setup import Setup
from gptjax.training.warm_start import warm_state

QUICK = {
    "train.batch_tokens": 512, "train.micro_batch": 4, "optim.warmup_steps": 1,
    "train.save_every_steps": 2, "optim.decay_steps": 4,
}  # fmt: skip
LORA = {"model.lora_rank": 2, "model.lora_targets": ("c_attn", "mlp/*"), "optim.ema_decay": 0.9}
LAST = {"optim.trainable": ("h/*", "ln_f/*"), "optim.trainable_layers": 1}


@pytest.fixture(scope="module")
def base(prepared, tmp_path_factory) -> Path:
    """A whole model with random parameters, as conversion leaves it."""
    model = Setup(tiny(prepared, QUICK)).config.model
    chance = np.random.default_rng(0)
    arrays = {leaf.name: np.float32(chance.normal(0, 0.1, leaf.shape)) for leaf in leaves(model)}
    path = tmp_path_factory.mktemp("base") / "run"
    write_run(Weights(model, arrays, ByteTokenizer(), "a test"), path)
    return path


def config_on(prepared, base: Path, fields: dict[str, Any], steps: int = 2) -> Config:
    return tiny(
        prepared, {**QUICK, "train.init_from": str(base), "train.max_steps": steps, **fields}
    )


def tree_of(run: Path, step: int, item: str) -> dict[str, Any]:
    """The arrays of an item of a checkpoint, by name, as Orbax finds them on the disk."""
    path = (run / "checkpoints" / str(step) / item).resolve()
    found: Any = ocp.StandardCheckpointer().metadata(path)
    return named_leaves(getattr(found, "item_metadata", found).tree)


def params_of(run: Path, step: int = 2) -> dict[str, np.ndarray]:
    found = load_run(f"{run}@{step}", averaged=False).params
    return {name: np.asarray(x) for name, x in named_leaves(found).items()}


@pytest.fixture(scope="module")
def adapted(prepared, base, tmp_path_factory) -> Path:
    """A run of adapters of two steps, with a running average."""
    run = tmp_path_factory.mktemp("adapted") / "run"
    assert fit.fit(config_on(prepared, base, LORA), run) == 0
    return run


@pytest.mark.slow
def test_a_checkpoint_of_adapters_holds_nothing_of_their_base(adapted, base):
    cfg = RunDir(adapted).read_config().model
    own = adapter_names(cfg)
    held = {path.name for path in (adapted / "checkpoints" / "2").iterdir() if path.is_dir()}
    assert held == {"adapters", "averaged", "opt_state", "config", "cursor"}
    assert tree_of(adapted, 2, "adapters").keys() == own
    assert tree_of(adapted, 2, "averaged").keys() == own
    moments = [x for x in tree_of(adapted, 2, "opt_state").values() if len(x.shape) > 1]
    sizes = {leaf.name: leaf.elements for leaf in leaves(cfg)}
    assert sum(np.prod(x.shape) for x in moments) == 3 * sum(sizes[name] for name in own)
    before, after = params_of(base, 0), params_of(adapted)
    changed = {n for n, x in after.items() if not np.array_equal(x, before[n])}
    assert changed == {
        "h/attn/c_attn/kernel", "h/mlp/c_fc/kernel", "h/mlp/c_proj/kernel",
    }  # fmt: skip


@pytest.mark.slow
def test_frozen_leaves_are_unchanged_and_have_no_state_in_the_checkpoint(prepared, base, tmp_path):
    run = tmp_path / "run"
    assert fit.fit(config_on(prepared, base, LAST), run) == 0
    before, after = params_of(base, 0), params_of(run)
    for name, x in after.items():
        is_block = name.startswith("h/")
        assert np.array_equal(x[:1], before[name][:1]) == (not name.startswith("ln_f")), name
        assert np.array_equal(x[-1], before[name][-1]) != (is_block or name.startswith("ln_f"))
    held = tree_of(run, 2, "opt_state")
    moments = {name: x.shape for name, x in held.items() if re.search(r"/(mu|nu)/", name)}
    assert len(moments) == 2 * (12 + 2)
    for name, shape in moments.items():
        owner = re.split(r"/(?:mu|nu)/", name)[1]
        assert owner.startswith(("h/", "ln_f/"))
        assert shape == (1, *after[owner].shape[1:]) if owner[0] == "h" else after[owner].shape


def test_the_optimizer_is_as_large_as_the_rank_and_both_are_announced(prepared, base):
    sizes = []
    for rank in (2, 4, 8):
        made = Setup(config_on(prepared, base, {**LORA, "model.lora_rank": rank}))
        sizes.append(count_bytes(made.program.abstract_state().opt_state))
    assert sizes[2] - sizes[1] == 2 * (sizes[1] - sizes[0])
    assert sizes[1] - sizes[0] == 3 * 4 * 2 * 2 * (32 + 96 + 32 + 128 + 128 + 32)
    said = announced(Setup(config_on(prepared, base, LAST)))
    assert re.search(r"trained  12,768 of \d\d,\d\d\d parameters, optimizer 0.1 MiB", said)


def test_from_scratch_everything_is_trained_and_one_line_says_so(prepared):
    made = Setup(tiny(prepared, {**QUICK, **LAST}))
    assert made.program.trained.everything
    said = announced(made)
    assert "(all of them: nothing is frozen" in said
    assert "(all of them" not in announced(Setup(tiny(prepared, QUICK)))


@pytest.mark.slow
@pytest.mark.parametrize("fields", [LORA, LAST], ids=["adapters", "last block"])
def test_a_broken_run_resumes_bit_for_bit_though_its_base_trains_on(
    prepared, base, tmp_path, fields
):
    source = shutil.copytree(base, tmp_path / "base")
    long = config_on(prepared, source, fields, steps=4)
    assert fit.fit(long, tmp_path / "unbroken") == 0
    assert fit.fit(config_on(prepared, source, fields, steps=2), tmp_path / "broken") == 0
    # a later checkpoint of the base, which is no reason to take it
    shutil.copytree(source / "checkpoints" / "0", source / "checkpoints" / "9")
    assert fit.fit(long, tmp_path / "broken") == 0
    one, other = (params_of(tmp_path / run, 4) for run in ("unbroken", "broken"))
    for name, x in one.items():
        np.testing.assert_array_equal(other[name], x, err_msg=name)
    rows = [(tmp_path / run / "metrics.jsonl").read_text() for run in ("unbroken", "broken")]
    losses = [[json.loads(line)["train_loss"] for line in text.splitlines()] for text in rows]
    assert losses[0] == losses[1]


def spoilt(base: Path, how: str) -> None:
    if how == "missing":
        shutil.rmtree(base)
    elif how == "another step":
        (base / "checkpoints" / "0").rename(base / "checkpoints" / "9")
    elif how == "no step":
        shutil.rmtree(base / "checkpoints" / "0")
    else:
        file = base / "checkpoints" / "0" / "INTEGRITY.json"
        file.write_text(file.read_text().replace("1", "2", 1))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("missing", "is not there: bring it back, or write its new place into"),
        ("no step", "is not there: bring it back"),
        ("another step", "no step 0 any more, only 9: it was deleted as that run trained on"),
        ("changed", "has changed since they were trained"),
    ],
)
def test_a_base_that_is_gone_or_another_is_told(prepared, base, adapted, tmp_path, how, words):
    source, run = tmp_path / "base" / "run", tmp_path / "adapted" / "run"
    shutil.copytree(base, source)
    shutil.copytree(adapted, run)
    pinned = json.loads((run / "base.json").read_text())
    (run / "base.json").write_text(json.dumps({**pinned, "model": str(source)}))
    load_adapted(run)
    spoilt(source, how)
    if how == "missing":
        (run / "base.json").write_text(
            json.dumps({**pinned, "model": str(source), "relative": "../none"})
        )
    with pytest.raises(UserError, match=words):
        load_run(run)
    more = config_on(prepared, base, LORA, steps=4)
    with pytest.raises(UserError, match=words):
        fit.fit(more, run)


def test_the_base_is_told_to_keep_the_step_beneath(adapted, base):
    assert str(adapted) in (base / "pinned" / "0").read_text().splitlines()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({**LORA, "model.lora_targets": ("c_foo",)}, "lora_targets c_foo names no matrix"),
        ({"optim.trainable": ("blocks/*",)}, "trainable blocks/. names no parameter"),
        ({"optim.trainable_layers": 9}, "trainable_layers is 9: expected 1 to"),
    ],
)
def test_what_the_model_does_not_have_is_refused_before_a_directory_is_made(
    prepared, base, tmp_path, fields, words
):
    with pytest.raises(UserError, match=words):
        fit.fit(config_on(prepared, base, fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_run_and_base_may_move_together(base, adapted, tmp_path):
    shutil.copytree(base, tmp_path / base.parent.name / "run")
    shutil.copytree(adapted, tmp_path / adapted.parent.name / "run")
    moved = tmp_path / adapted.parent.name / "run"
    pinned = json.loads((moved / "base.json").read_text())
    (moved / "base.json").write_text(json.dumps({**pinned, "model": "/nowhere"}))
    assert str(load_adapted(moved).base.origin).endswith(str(tmp_path / base.parent.name / "run"))


def test_a_run_starts_from_adapters_merged_into_their_base(prepared, adapted):
    made = Setup(config_on(prepared, adapted, {}))
    state, lines = warm_state(made.config, made.program, made.tokenizer)
    expected = named_leaves(load_run(adapted).params)
    for name, x in named_leaves(state.params).items():
        np.testing.assert_allclose(x, expected[name], atol=1e-7, err_msg=name)
    assert "its adapters merged into their base" in lines[0]


@pytest.mark.slow
def test_adapters_on_adapters_have_the_first_ones_merged(prepared, adapted, tmp_path):
    run = tmp_path / "second"
    assert fit.fit(config_on(prepared, adapted, LORA), run) == 0
    assert load_adapted(run).base.config.model.lora_rank == 0
    assert load_run(run).config.model.lora_rank == 0
    kernel = "h/attn/c_attn/kernel"
    assert not np.array_equal(params_of(run)[kernel], params_of(adapted)[kernel])


def test_new_positions_that_nothing_trains_are_refused(prepared, base):
    size = {"model.n_ctx": 128, "train.batch_tokens": 1024}
    made = Setup(config_on(prepared, base, {**LORA, **size}))
    with pytest.raises(UserError, match=r"adds 64 positions .* would not train them"):
        warm_state(made.config, made.program, made.tokenizer)


def test_names_and_adapters_together_are_refused(prepared, base):
    config = config_on(prepared, base, {**LORA, **LAST})
    assert [p.message for p in find_problems(config) if "goes without" in p.message]


RULES: list[dict[str, Any]] = [
    {"optim.name": name, **more}
    for name in ("adamw", "lion", "adafactor", "muon")
    for more in ({}, {"optim.moments_dtype": "bfloat16", "optim.ema_decay": 0.9})
]
RULES += [{"model.dtype": "float16"}, {"model.dtype": "bfloat16", "train.updates_per_call": 2}]


@pytest.mark.slow
@pytest.mark.parametrize("parts", [LORA, LAST], ids=["adapters", "last block"])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_every_update_rule_trains_a_part_and_leaves_the_rest(prepared, base, parts, rule):
    made = Setup(config_on(prepared, base, {**parts, **rule, "train.micro_batch": 8}))
    state, _ = warm_state(made.config, made.program, made.tokenizer)
    before = jax.device_get(state.params)
    calls = made.config.train.updates_per_call
    call = made.feed.training([made.source[i] for i in range(calls)])
    state, metrics = made.train_steps(state, call)
    assert np.isfinite(np.asarray(metrics["loss"])).all()
    trained = made.program.trained
    new, old = (map(named_leaves, trained.split(p)) for p in (state.params, before))
    (own, frozen), (own_before, frozen_before) = new, old
    for name, x in frozen.items():
        np.testing.assert_array_equal(x, frozen_before[name], err_msg=name)
    moved = [name for name, x in own.items() if not np.array_equal(x, own_before[name])]
    assert len(moved) >= len(own) / 2  # of adapters, the first matrices have no gradient yet
    made.adapted(state, {})
    made.evaluated_params(state)
