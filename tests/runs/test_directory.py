"""A run's directory is never mixed with anything else, and decisive settings cannot change."""

import contextlib
import dataclasses
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import ROOT

from gptjax.base.errors import ConfigError, UserError
from gptjax.config import Config, DataConfig, to_json
from gptjax.config.origins import as_words, flag_of
from gptjax.config.presets import load_config
from gptjax.preparation.pipeline import prepare_shards
from gptjax.preparation.sources import text_files
from gptjax.runs import directory, resuming
from gptjax.runs.checkpoint import Checkpointer
from gptjax.runs.directory import LOCK, RunDir
from gptjax.runs.integrity import sign
from gptjax.runs.resuming import Change, in_columns
from gptjax.tokenizers.plain import ByteTokenizer
from gptjax.tokenizers.registry import fingerprint
from gptjax.train import train
from gptjax.training import fit
from gptjax.training.setup import Setup
from gptjax.training.state import TrainState, saved_items

FIXED = {
    "task": "other", "model.n_layer": 3, "model.n_head": 4, "model.n_embd": 64,
    "model.n_ctx": 128, "model.n_vocab": 300, "model.norm": "post", "model.final_norm": False,
    "model.scale_residual_init": False, "model.qkv_bias": False, "model.bias": False,
    "model.tied_head": False, "model.activation": "gelu_erf", "model.n_special": 3,
    "model.n_classes": 2, "model.lora_rank": 4, "model.lora_alpha": 8.0,
    "model.lora_targets": ("c_fc",), "optim.name": "lion", "optim.moments_dtype": "bfloat16",
    "optim.ema_decay": 0.9, "optim.trainable": ("ln_f/*",), "optim.trainable_layers": 1,
    "train.context": 32, "train.seed": 1, "train.init_from": "runs/other",
    "data.document_mask": True, "data.test_fraction": 0.2, "data.split_seed": 1,
    "classify.form": "pair", "classify.read": "last", "classify.lm_weight": 0.0,
    "classify.balance": "weights", "classify.labels": ("a", "b"), "classify.rarer": "a",
    "instruct.template": "chat", "instruct.loss_on": "all", "instruct.lengths": "pad",
}  # fmt: skip
ANNOUNCED = {
    "optim.peak_lr": 1.0, "optim.final_lr": 1.0, "optim.schedule": "linear",
    "optim.warmup_steps": 3, "optim.warmup_fraction": 0.1, "optim.decay_steps": 70,
    "optim.rewarm_steps": (9,), "optim.cooldown_fraction": 0.5, "optim.weight_decay": 0.3,
    "optim.beta1": 0.5, "optim.beta2": 0.5, "optim.eps": 1e-05, "optim.muon_momentum": 0.9,
    "optim.clip_norm": None, "train.max_steps": 200, "train.epochs": 2.0,
    "train.batch_tokens": 1024, "train.batch_rows": 4, "train.ramp_from_tokens": 256,
    "train.ramp_steps": 8, "train.patience": 3, "train.best_by": "accuracy",
    "train.eval_tokens": None, "train.skip_zscore": 5.0, "train.rollback_zscore": 4.0,
    "train.wire_dtype": "bfloat16", "data.mixture_changes": ("5=1",), "model.dtype": "bfloat16",
    "model.float32_matmul": "tf32", "model.embd_pdrop": 0.1, "model.attn_pdrop": 0.1,
    "model.resid_pdrop": 0.1, "model.clf_pdrop": 0.1, "model.lora_dropout": 0.1,
}  # fmt: skip
FREE = {
    "data.path": "elsewhere", "data.tokenizer": "gpt2", "data.source": None,
    "data.inputs": ("a.txt",), "data.input_format": "jsonl", "data.text_field": "body",
    "data.doc_separator": "--", "data.hub": "owner/name", "data.val_fraction": 0.3,
    "data.mixture": ("a=1",), "data.verify": "off", "data.examples": "a.tsv",
    "data.val_examples": "b.tsv", "data.test_examples": "c.tsv", "data.header": True,
    "data.label_field": "label", "data.pair_field": "other", "data.choice_fields": ("a",),
    "instruct.test_responses": 3, "sample.prompt": "x", "sample.max_new_tokens": 5,
    "sample.temperature": 0.0, "sample.top_k": None, "sample.top_p": 0.9, "sample.min_p": 0.1,
    "sample.repetition_penalty": 1.2, "sample.stop": ("x",), "mesh.data": 1, "mesh.fsdp": 2,
    "mesh.tensor": 2, "train.micro_batch": 2, "train.cpu_devices": 2,
    "train.loss_chunk_tokens": 64, "train.updates_per_call": 3, "train.deterministic": True,
    "train.profile": "1:2", "train.eval_every_steps": 7, "train.eval_every_epochs": 1.0,
    "train.evaluate_on": ("lambada=a",), "train.evaluate_on_every_steps": 5,
    "train.evaluate_on_limit": 9, "train.sample_every_steps": 11, "train.save_every_steps": 9,
    "train.save_every_minutes": 5.0, "train.keep_latest": 5, "train.keep_every_steps": 50,
    "train.checkpoint_dir": "elsewhere", "train.stall_seconds": 0, "train.preflight": "off",
    "train.price": 2.5, "train.track": ("wandb",), "model.unroll": 2, "model.attention": "xla",
    "model.remat": "full",
}  # fmt: skip
PRESET = load_config("tiny")
TINY = dataclasses.replace(
    PRESET,
    # a loop over layers, without which nothing can be rematerialised
    model=dataclasses.replace(PRESET.model, n_layer=4, unroll=1),
    data=dataclasses.replace(PRESET.data, mixture=("b=2",)),  # whose weights may then change
)


def value(config: Config, name: str) -> Any:
    section, _, field = name.partition(".")
    part = getattr(config, section)
    return getattr(part, field) if field else part


def changed(fields: dict[str, Any]) -> Config:
    config = TINY
    for name, new in fields.items():
        section, _, field = name.partition(".")
        part = dataclasses.replace(getattr(config, section), **{field: new}) if field else new
        config = dataclasses.replace(config, **{section: part})
    return config


def contents(path: Path) -> dict[str, bytes]:
    """Every file that is not hidden."""
    files = [p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".")]
    return {str(p.relative_to(path)): p.read_bytes() for p in files}


def begin(run: RunDir, config: Config) -> list[Change]:
    with run.locked():
        changes = run.compare(config)
        run.begin(config, ByteTokenizer())
        return changes


@pytest.fixture
def begun(tmp_path) -> RunDir:
    """A run that has begun and has a checkpoint."""
    run = RunDir(tmp_path / "runs" / "x")
    assert begin(run, TINY) == []
    (run.checkpoints / "25").mkdir(parents=True)
    return run


def test_beginning_writes_config_and_tokenizer_and_nothing_else(tmp_path):
    run = RunDir(tmp_path / "a" / "b")
    assert begin(run, TINY) == []
    assert set(contents(run.path)) == {"config.json", "tokenizer.json"}
    assert run.config.read_text() == to_json(TINY)
    assert run.read_config() == TINY
    assert fingerprint(run.read_tokenizer()) == fingerprint(ByteTokenizer())


def test_every_field_is_in_exactly_one_class_and_tried_here():
    fields = [f"{name}.{field}" for name, section in dataclasses.asdict(TINY).items()
              if isinstance(section, dict) for field in section] + ["task"]  # fmt: skip
    classes = resuming.REFUSED, resuming.ANNOUNCED, resuming.FREE
    assert sorted(itertools.chain(*classes)) == sorted(fields)
    tried = FIXED, ANNOUNCED, FREE
    assert [set(fields) for fields in tried] == [set(fields) for fields in classes]
    others = FIXED | ANNOUNCED | FREE
    assert [name for name, new in others.items() if value(TINY, name) == new] == []


def test_a_converted_run_does_not_resume_and_says_how_to_start_from_it(begun):
    (begun.checkpoints / "25").rename(begun.checkpoints / "0")
    with pytest.raises(UserError, match=r"--train\.init-from \S+x and another --run-dir"):
        begin(begun, TINY)


def test_the_same_config_goes_on(begun):
    before = contents(begun.path)
    assert begin(begun, TINY) == []
    assert contents(begun.path) == before


@pytest.mark.parametrize("name", FIXED)
def test_a_run_with_checkpoints_does_not_go_on_with_another(name, begun):
    before = contents(begun.path)
    with pytest.raises(UserError) as caught:
        begin(begun, changed({name: FIXED[name]}))
    said = str(caught.value)
    assert f"  refused  {name}  {value(TINY, name)!r}  -> {FIXED[name]!r}" in said
    assert f"{flag_of(name)} {as_words(value(TINY, name))}".rstrip() in said
    assert str(begun.path) in said
    assert "--fresh" in said
    assert contents(begun.path) == before


def test_a_refusal_shows_all_that_differs_by_class_and_the_flags_of_what_is_refused(begun):
    with pytest.raises(UserError) as caught:
        begin(begun, changed(FIXED | ANNOUNCED | FREE))
    lines = [line.split() for line in str(caught.value).splitlines() if " -> " in line]
    kinds = {"refused": FIXED, "announced": ANNOUNCED, "free": FREE}
    assert [line[0] for line in lines if line[0] in kinds] == list(kinds)
    names = [next(word for word in line if word not in kinds) for line in lines]
    assert names[: len(FIXED)] != sorted(names)  # in the order of the config
    assert set(names[: len(FIXED)]) == set(FIXED)
    assert set(names[-len(FREE) :]) == set(FREE)
    (flags,) = [line for line in str(caught.value).splitlines() if line.startswith("  --")]
    typed = {word for word in flags.split() if word.startswith("--")}
    assert typed == {flag_of(name) for name in FIXED}


def test_a_fine_tuning_keeps_its_batch_because_it_counts_in_epochs(begun):
    instructing = dataclasses.replace(TINY, task="instruct")
    begun.begin(instructing, ByteTokenizer())
    larger = dataclasses.replace(instructing.train, batch_rows=4)
    with pytest.raises(UserError, match=r"train\.batch_rows  None  -> 4\n.*counted in\sepochs"):
        begin(begun, dataclasses.replace(instructing, train=larger))


@pytest.mark.parametrize("name", ANNOUNCED | FREE)
def test_any_other_field_may_change_and_is_shown_with_its_class(name, begun):
    kind, new = "announced" if name in ANNOUNCED else "free", (ANNOUNCED | FREE)[name]
    config = changed({name: new})
    changes = begin(begun, config)
    assert changes == [(name, value(TINY, name), new, kind)]
    assert in_columns(changes) == f"\n  {kind}  {name}  {value(TINY, name)!r}  -> {new!r}"
    assert begun.config.read_text() == to_json(config)


def test_all_that_is_not_refused_may_change_together(begun):
    changes = begin(begun, changed(ANNOUNCED | FREE))
    assert {change.name for change in changes} == {*ANNOUNCED, *FREE}


@pytest.mark.parametrize("others", [[], ["checkpoints"]], ids=["nothing", "none yet"])
def test_a_run_without_checkpoints_may_become_any_other(others, tmp_path):
    run = RunDir(tmp_path)
    begin(run, TINY)
    for name in others:
        (tmp_path / name).mkdir()
    other = changed(FIXED)
    assert begin(run, other) == []
    assert run.read_config() == other


def test_a_damaged_config_is_named(begun):
    begun.config.write_text('{"model": {"n_lay')
    with pytest.raises(ConfigError, match=r"config\.json is not a config"):
        begin(begun, TINY)


def test_a_directory_that_is_no_run_is_told_so(tmp_path):
    with pytest.raises(UserError, match=r"is not a run of gptjax \(no config\.json\)"):
        RunDir(tmp_path).read_config()
    with pytest.raises(UserError, match=r"tokenizer\.json cannot be read"):
        RunDir(tmp_path).read_tokenizer()
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json is not a tokenizer file"):
        RunDir(tmp_path).read_tokenizer()


@pytest.mark.parametrize(
    ("files", "fine"),
    [
        (None, True),
        ([], True),
        (["config.json"], True),
        (["config.json", "log.txt", "thesis.tex"], True),
        ([".lock"], True),
        (["thesis.tex"], False),
        ([".lock", "thesis.tex"], False),
        ([".hidden"], False),
        (["checkpoints/1/params"], False),
    ],
    ids=str,
)
def test_only_a_run_or_an_empty_directory_will_do(files, fine, tmp_path):
    path = tmp_path / "x"
    for name in files or ():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(name)
    if files == []:
        path.mkdir()
    refusal = pytest.raises(UserError, match=r"no config\.json.*choose another --run-dir")
    with contextlib.nullcontext() if fine else refusal:
        RunDir(path).check()
        RunDir(path).recover_config()
    assert path.exists() == (files is not None)


def test_a_file_is_no_directory(tmp_path):
    (tmp_path / "x").write_text("x")
    with pytest.raises(UserError, match=r"is a file.*choose another --run-dir"):
        RunDir(tmp_path / "x").check()


def test_only_one_process_at_a_time_holds_a_run(tmp_path):
    run = RunDir(tmp_path / "a" / "x")
    with run.locked():
        with pytest.raises(UserError, match=r"another process .*choose another --run-dir"):
            begin(RunDir(run.path), TINY)
        assert contents(run.path) == {}
        run.check()
    assert begin(run, TINY) == []


def test_a_process_that_was_killed_holds_nothing(tmp_path):
    script = f"""
import os
from pathlib import Path
from gptjax.runs.directory import LOCK, RunDir
with RunDir(Path({str(tmp_path)!r})).locked():
    os.kill(os.getpid(), 9)
"""
    ended = subprocess.run([sys.executable, "-c", script], env={"PYTHONPATH": str(ROOT)})
    assert ended.returncode == -9
    assert begin(RunDir(tmp_path), TINY) == []


def test_setting_aside_nothing_does_nothing(tmp_path):
    assert RunDir(tmp_path / "x").set_aside() is None
    assert list(tmp_path.iterdir()) == []


def test_setting_aside_keeps_every_byte_however_often(tmp_path, monkeypatch):
    monkeypatch.setattr(directory.time, "strftime", lambda _: "20250101-000000")
    kept = {}
    for i in range(4):
        run = RunDir(tmp_path / "x")
        begin(run, changed({"train.seed": i}))
        (run.checkpoints / "1").mkdir(parents=True)
        (run.checkpoints / "1" / "params").write_bytes(bytes([i]))
        before = contents(run.path)
        target = run.set_aside()
        assert not run.path.exists()
        assert target.parent == tmp_path
        assert target.name.startswith("x.20250101-000000")
        kept[target] = before
    assert len(kept) == 4
    assert {path: contents(path) for path in tmp_path.iterdir()} == kept


@pytest.mark.parametrize("spelling", [".", "..", "../x", "../x/", "../x/."])
def test_setting_aside_works_or_is_refused_however_the_path_is_spelt(begun, monkeypatch, spelling):
    before = contents(begun.path)
    monkeypatch.chdir(begun.checkpoints if spelling == ".." else begun.path)
    target = begun.path
    with contextlib.suppress(UserError):
        target = RunDir(Path(spelling)).set_aside().resolve()
    runs = begun.path.parent
    assert {path.resolve() for path in runs.iterdir()} == {runs / target.name}
    assert contents(runs / target.name) == before


@pytest.fixture
def start_afresh(prepared, monkeypatch):
    """`train --fresh` up to where it would train."""
    monkeypatch.setattr(fit.Loop, "train", lambda self, state, step: 0)

    def start(path: Path) -> int:
        flags = ["--data.path", str(prepared.directory), "--run-dir", str(path), "--fresh"]
        flags += ["--train.preflight", "off"]
        return train(["--config", "tiny", *flags])

    return start


@pytest.mark.slow
def test_starting_afresh_keeps_the_old_run_and_says_where(begun, start_afresh, capsys):
    before = contents(begun.path)
    assert start_afresh(begun.path) == 0
    (kept,) = [p for p in begun.path.parent.iterdir() if p != begun.path]
    assert contents(kept) == before
    assert f"the old run is kept in {kept}" in capsys.readouterr().out


def test_starting_afresh_does_not_move_what_is_no_run(start_afresh, tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="not a run of gptjax"):
        start_afresh(tmp_path / "work")
    assert contents(tmp_path) == {"work/thesis.tex": b"x"}


def test_starting_afresh_does_not_move_a_run_that_another_process_holds(begun, start_afresh):
    with begun.locked():
        with pytest.raises(UserError, match="another process"):
            start_afresh(begun.path)
        assert list(begun.path.parent.iterdir()) == [begun.path]


def zero_state(setup: Setup) -> TrainState:
    zeros = jax.tree.map(
        lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding),
        setup.program.abstract_state(),
    )
    return zeros._replace(step=np.int32(1))


@pytest.mark.slow
def test_a_start_that_other_data_refuse_leaves_the_run_as_it_was(tmp_path):
    manifests = []
    for name, text in (("ones", "one two three four five six "), ("abc", "abcde fghij klmno pq ")):
        file = tmp_path / f"{name}.txt"
        file.write_text("".join(text[i % 17 :] for i in range(2000)))
        data = DataConfig(str(tmp_path / name), "bpe:260", inputs=(str(file),), val_fraction=0.2)
        manifests.append(prepare_shards(data, text_files(data.inputs)))
    assert len({m.tokenizer_fingerprint for m in manifests}) == 2
    configs = [
        changed({"data.path": str(m.directory), "data.tokenizer": None, "data.mixture": ()})
        for m in manifests
    ]

    setup, run = Setup(configs[0]), RunDir(tmp_path / "run")
    with run.locked():
        run.begin(setup.config, setup.tokenizer)
    checkpointer = Checkpointer(run.checkpoints)
    checkpointer.save(0, saved_items(zero_state(setup)), {}, setup.data_identity(0))
    checkpointer.close()
    before = contents(run.path)
    with pytest.raises(UserError):
        fit.fit(configs[1], run.path)
    after = contents(run.path)
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, None),
        ({"train.save_every_steps": 9}, None),
        ({"train.max_steps": 80}, ("0.0005", "0.0008536", "--optim.decay-steps 40")),
        ({"train.max_steps": 80, "optim.decay_steps": 40}, None),
        ({"train.max_steps": 80, "optim.rewarm_steps": (40,)}, ("0.0005", "0.0005", "40", "80")),
        ({"optim.peak_lr": 2e-3}, ("0.0005", "0.001", "--optim.peak-lr 0.001")),
        ({"optim.schedule": "linear"}, None),  # half-way down it is at the same rate
        (
            {"optim.warmup_steps": 9, "train.max_steps": 80},
            ("0.0005", "--optim.warmup-steps 0", "--optim.decay-steps 40"),
        ),
    ],
)
def test_another_course_is_told_by_its_rates_and_by_the_flags_that_keep_the_old_one(
    fields, said, prepared, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(fit.Loop, "train", lambda self, state, step: 0)
    same = {
        "data.path": str(prepared.directory), "data.tokenizer": None, "data.mixture": (),
        "train.max_steps": 40, "optim.peak_lr": 1e-3, "optim.final_lr": 0.0,
        "optim.warmup_steps": 0, "train.eval_every_steps": 0,
    }  # fmt: skip
    setup, run = Setup(changed(same)), RunDir(tmp_path / "run")
    with run.locked():
        run.begin(setup.config, setup.tokenizer)
    with contextlib.closing(Checkpointer(run.checkpoints)) as checkpointer:
        state = zero_state(setup)._replace(step=np.int32(20))
        config = dataclasses.asdict(setup.config)
        checkpointer.save(20, saved_items(state), config, setup.data_identity(20))
    before = contents(run.path)
    assert fit.fit(changed(same | fields), run.path) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "learning rate" in line]
    assert len(lines) == (said is not None)
    assert all(words in lines[0] for words in said or ())
    after = contents(run.path)
    changed_files = {name for name in after if after[name] != before.get(name)}
    assert changed_files == {"log.txt", "accounts.json"}


def test_what_a_run_killed_while_it_started_left_is_no_obstacle(tmp_path):
    run = RunDir(tmp_path)
    run.checkpoints.mkdir()
    for name in (LOCK, "log.txt", "tokenizer.json", ".config.json.1.tmp"):
        (tmp_path / name).write_text("")
    run.check()
    assert begin(run, TINY) == []


def test_a_config_that_is_gone_comes_back_from_the_newest_checkpoint_that_has_it(tmp_path):
    run = RunDir(tmp_path)
    for step in (10, 20, 30):
        place = run.checkpoints / str(step) / "config"
        place.mkdir(parents=True)
        kept = dataclasses.replace(TINY.train, max_steps=step)
        (place / "metadata").write_text(to_json(dataclasses.replace(TINY, train=kept)))
        sign(place.parent)
    (place / "metadata").write_text("{}")
    run.check()
    assert run.recover_config() == [
        f"note     {run.config} was gone: it is that of checkpoint 20 now"
    ]
    assert run.read_config().train.max_steps == 20
    assert run.recover_config() == []


def test_a_config_that_may_not_be_read_is_not_taken_for_a_missing_one(tmp_path, monkeypatch):
    def refuses(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuses)
    with pytest.raises(UserError, match=r"config.json cannot be read: Permission denied$"):
        RunDir(tmp_path).read_config()
