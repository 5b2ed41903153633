"""A mixture of prepared directories gives the same batches however often a run is interrupted."""

import dataclasses
import json
import re
import signal
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from conftest import environment_on, without_speed

from gptjax.base.errors import UserError
from gptjax.cli import parse_config
from gptjax.cluster.phases import Phases
from gptjax.cluster.watchdog import Watchdog
from gptjax.config import Config, DataConfig, to_json
from gptjax.config.batches import BatchSchedule, batch_schedule
from gptjax.config.presets import load_config
from gptjax.config.run_batches import RunBatches
from gptjax.config.validation import config_from_json
from gptjax.data.corpus import Corpus
from gptjax.data.loader import StepSource, batches_from
from gptjax.evaluation.perplexity import evaluate_parts
from gptjax.preparation.pipeline import prepare_shards
from gptjax.preparation.sources import text_files
from gptjax.runs.checkpoint import Restored
from gptjax.runs.directory import RunDir
from gptjax.train import TrainCommand
from gptjax.training.setup import Setup
from gptjax.training.start import restore_or_start
from gptjax.training.state import items_of

WEIGHTS = (60, 22, 8, 8, 3)
NAMES = ("crawl", "web", "books1", "books2", "wiki")
T, ROWS, STEPS = 64, 16, 200
FED_ROWS = Path(__file__).with_name("fed_rows.py")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Five prepared directories; every line of a source says which it is and where."""
    root = tmp_path_factory.mktemp("sources")
    for k, name in enumerate(NAMES):
        text = root / f"{name}.txt"
        text.write_text("".join(f"{name} {i:05d} of it\n" for i in range(2000 - 300 * k)))
        data = DataConfig(str(root / name), "bytes", None, (str(text),), 0.1)
        prepare_shards(data, text_files(data.inputs), shard_tokens=5000)
    return [root / name for name in NAMES]


def config_of(sources: list[Path], *changes: str, caps: str = "", **train: int) -> Config:
    mixture = tuple(f"{s}={w}{caps}" for s, w in zip(sources, WEIGHTS, strict=True))
    tiny = load_config("tiny")
    values = {"batch_tokens": ROWS * T, "context": T, "micro_batch": 2, "max_steps": STEPS,
              "seed": 5, "cpu_devices": 1, **train}  # fmt: skip
    return dataclasses.replace(
        tiny,
        model=dataclasses.replace(tiny.model, n_ctx=T, n_vocab=None),
        data=DataConfig(tokenizer="bytes", mixture=mixture, mixture_changes=changes),
        train=dataclasses.replace(tiny.train, **values),
    )


def batches(config: Config, steps: range, processes: int) -> np.ndarray:
    """The rows of all processes, each of which opens everything by itself: [steps, ROWS, T + 1]."""
    parts = []
    for process in range(processes):
        source = StepSource(
            Corpus(config),
            batch_schedule(config),
            steps.stop,
            config.train.seed,
            process,
            processes,
        )
        with batches_from(source, steps.start) as read:
            parts.append(np.stack([batch["tokens"] for batch in read]))
    return np.concatenate(parts, axis=1)


def source_of(row: np.ndarray) -> str:
    words = re.findall("crawl|web|books1|books2|wiki", bytes(row[row < 256].tolist()).decode())
    assert len(set(words)) == 1
    return words[0]


@pytest.mark.parametrize("changes", [(), ("50=1,1,1,1,1", "120=0,0,10,1,1")])
def test_a_run_killed_and_resumed_on_other_process_counts_sees_the_same_batches(sources, changes):
    config = config_of(sources, *changes)
    alone = batches(config, range(STEPS), 1)
    parts = [
        batches(config, steps, processes)
        for steps, processes in (
            (range(37), 4), (range(37, 90), 1), (range(90, 121), 8), (range(121, STEPS), 2),
        )
    ]  # fmt: skip
    np.testing.assert_array_equal(alone, np.concatenate(parts))
    assert alone.shape == (STEPS, ROWS, T + 1)
    named = [source_of(row) for row in alone.reshape(-1, T + 1)]
    until = [0, 50, 120, STEPS] if changes else [0, STEPS]
    shares = [WEIGHTS, (1, 1, 1, 1, 1), (0, 0, 10, 1, 1)]
    for begin, end, weights in zip(until, until[1:], shares, strict=False):
        part = named[begin * ROWS : end * ROWS]
        for length in range(1, len(part) + 1, 17):
            for name, weight in zip(NAMES, weights, strict=True):
                ideal = length * weight / sum(weights)
                assert abs(part[:length].count(name) - ideal) <= 2


def test_each_source_is_shuffled_and_repeated_by_itself(sources):
    rows = batches(config_of(sources), range(STEPS), 1).reshape(-1, T + 1)
    names = np.array([source_of(row) for row in rows])
    for name, epochs_at_least in (("wiki", 0), ("web", 1)):
        own = [row.tobytes() for row in rows[names == name]]
        manifest = next(m for m in Corpus(config_of(sources)).manifests if m.directory.name == name)
        n = (manifest.splits["train"].tokens - 1) // T
        for epoch in range(len(own) // n):
            assert len(set(own[epoch * n : (epoch + 1) * n])) == n
        assert len(own) // n >= epochs_at_least
    assert rows[names == "web"][0].tobytes() != rows[names == "crawl"][0].tobytes()


def test_a_source_of_weight_0_waits_for_the_change_that_brings_it_in(sources):
    config = config_of(sources, "10=1,0,0,0,1")
    late = (*config.data.mixture[:4], f"{sources[4]}=0")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, mixture=late))
    rows = batches(config, range(20), 1)
    assert "wiki" not in {source_of(row) for row in rows[:10].reshape(-1, T + 1)}
    assert {source_of(row) for row in rows[10:].reshape(-1, T + 1)} == {"crawl", "wiki"}
    assert Corpus(config).shares()[4] == pytest.approx(5 / STEPS * 19, abs=0.01)


def test_sources_that_are_copies_do_not_go_in_step(sources, tmp_path):
    (tmp_path / "copy").symlink_to(sources[0])
    config = config_of(sources)
    data = DataConfig(mixture=(f"{sources[0]}=1", f"{tmp_path / 'copy'}=1"))
    rows = batches(dataclasses.replace(config, data=data), range(20), 1).reshape(-1, T + 1)
    assert (rows[0::2] == rows[1::2]).all(axis=1).mean() < 0.1


def test_the_fingerprint_holds_sources_weights_and_their_order(sources):
    config = config_of(sources)
    mixture = config.data.mixture
    others = [
        {"mixture": mixture[::-1]},
        {"mixture": mixture[:4]},
        {"mixture": (f"{sources[0]}=61", *mixture[1:])},
        {"mixture_changes": ("9=1,1,1,1,1",)},
        {"mixture": (), "path": str(sources[0])},
    ]
    configs = [config] + [
        dataclasses.replace(config, data=dataclasses.replace(config.data, **c)) for c in others
    ]
    assert len({Corpus(c).fingerprint_until() for c in configs}) == len(configs)
    known = Corpus(config).fingerprint_until()
    assert Corpus(config_of(sources, caps=":99")).fingerprint_until() == known
    alone = Corpus(configs[-1])
    assert alone.fingerprint_until() == alone.manifest.fingerprint


@pytest.mark.parametrize("step", [6, 7])
def test_what_is_known_of_a_checkpoint_changes_with_its_past_batches_only(sources, step):
    """A weight that comes into force after step 6 matters to step 7, counted from 1."""
    configs = [
        config_of(sources, *changes)
        for changes in ((), ("6=0,0,0,0,1",), ("9=0,0,0,0,1",), ("6=1,0,0,0,0", "7=0,1,1,1,1"))
    ]
    seen = [batches(config, range(step), 1).tobytes() for config in configs]
    known = [Corpus(config).fingerprint_until(step) for config in configs]
    assert [[a == b for b in seen] for a in seen] == [[a == b for b in known] for a in known]
    assert len(set(known)) == (1 if step == 6 else 3)
    spelled = Corpus(config_of(sources, "6=0,0.0,0,00,1"))
    assert spelled.fingerprint_until(step) == known[1]


def test_a_run_goes_on_with_other_weights_to_come_but_not_with_another_past(sources, tmp_path):
    """At a checkpoint of step 60."""
    old = Corpus(config_of(sources, "50=1,1,1,1,1", "150=5,4,3,2,1"))
    setup = Setup(config_of(sources, micro_batch=1))
    state = setup.program.initial_state()._replace(step=np.int32(60))
    RunDir(tmp_path).begin(setup.config, setup.tokenizer)

    def restore(known: str, *changes: str) -> int:
        setup.data = Corpus(config_of(sources, *changes))
        cursor = {"data": known, "grain": version("grain")}
        checkpointer = SimpleNamespace(restore=lambda *_: Restored(60, items_of(state), cursor))
        said = cast(Any, SimpleNamespace(say=lambda _: None))
        run = RunDir(tmp_path)
        return restore_or_start(setup, cast(Any, checkpointer), run, said, Phases(Watchdog(0)))[1]

    now = old.fingerprint_until(60)
    for later in ((), ("60=2,2,2,2,1",), ("70=0,0,0,0,1", "71=1,1,1,1,0")):
        assert restore(now, "50=1,1,1,1,1", *later) == 60
    for past in ((), ("50=1,1,1,1,2",), ("51=1,1,1,1,1",), ("50=1,1,1,1,1", "59=1,1,1,1,1")):
        with pytest.raises(UserError, match=r"another mixture up to step 60 .*before step 60"):
            restore(now, *past)


def test_weights_change_at_the_row_where_their_step_begins_in_a_run_of_changed_batches(sources):
    """The batch is halved at step 30; weights change before that and after it."""
    config = config_of(sources, "20=0,0,0,1,1", "40=1,1,0,0,0", caps=":30")
    run = RunBatches.of(batch_schedule(config))
    run = run.continued(30, run.rows_before(30), BatchSchedule(ROWS // 2, ROWS // 2, 0))
    data = Corpus(config).along(run)
    assert run.rows_before(STEPS) == 30 * ROWS + 170 * ROWS // 2
    source = StepSource(data, run, STEPS, config.train.seed)
    batches = [source[step]["tokens"] for step in range(50)]
    assert [len(batch) for batch in batches] == [ROWS] * 30 + [ROWS // 2] * 20
    for step, batch in enumerate(batches):
        allowed = NAMES if step < 20 else NAMES[3:] if step < 40 else NAMES[:2]
        assert {source_of(row) for row in batch} <= set(allowed)
    seen = np.unique(np.concatenate(batches), axis=0)
    assert len(seen) == run.rows_before(50)  # none is read twice before its epoch is over
    read = data.progress(50)
    held = {name: len(w) for name, w in zip(NAMES, data._windows, strict=True)}
    assert sum(read[f"epochs/{n}"] * held[n] for n in NAMES) == pytest.approx(run.rows_before(50))
    data.refuse_excess()
    with pytest.raises(UserError, match="200 steps read a source of"):
        Corpus(config_of(sources, caps=":0.5")).along(run).refuse_excess()


def test_more_epochs_than_allowed_are_refused_before_the_run_and_all_are_named(sources):
    corpus = Corpus(config_of(sources, caps=":1.5"))
    with pytest.raises(UserError) as refused:
        corpus.refuse_excess()
    named = re.findall(r"(\w+) would be read (\d\.\d\d) times, at most 1\.5", str(refused.value))
    progress = corpus.progress(STEPS)
    expected = [
        (n, f"{progress[f'epochs/{n}']:.2f}") for n in NAMES if progress[f"epochs/{n}"] > 1.5
    ]
    assert named == expected
    assert 0 < len(named) < len(NAMES)
    Corpus(config_of(sources, caps=":1.5", max_steps=10)).refuse_excess()


def test_what_is_missing_or_has_another_tokenizer_is_named(sources, tmp_path, text_file):
    config = config_of(sources)
    other = DataConfig(str(tmp_path / "chars"), "chars", None, (str(text_file),), 0.1)
    prepare_shards(other, text_files(other.inputs))
    command = "python -m gptjax.prepare --input FILE... --tokenizer"
    for mixture, words in (
        (
            ("none=1", f"{sources[0]}=1", "no thing=2"),
            "data.mixture names none, no thing without prepared data: run\n"
            f"  {command} {sources[0]}/tokenizer.json --out none\n"
            f"  {command} {sources[0]}/tokenizer.json --out 'no thing'$",
        ),
        (("none=1",), f"{command} bytes --out none$"),
        ((f"{sources[0]}=1", f"{other.path}=1"), "crawl was tokenised with bytes .* with chars"),
    ):
        data = dataclasses.replace(config.data, mixture=mixture)
        with pytest.raises(UserError, match=words):
            Corpus(dataclasses.replace(config, data=data))


def test_a_mixture_of_one_validates_its_source_by_name_and_a_path_does_not(sources):
    alone = dataclasses.replace(config_of(sources).data, mixture=(f"{sources[0]}=1",))
    config = dataclasses.replace(config_of(sources), data=alone)
    corpus = Corpus(config)
    (part,) = corpus.validation_sets()
    assert {f"epochs/{part.name}"} == set(corpus.progress(1))
    plain = dataclasses.replace(alone, mixture=(), path=str(sources[0]))
    (part,) = Corpus(dataclasses.replace(config, data=plain)).validation_sets()
    assert part.name == ""


@pytest.mark.parametrize("name", ["tiny", "quickstart", "shakespeare"])
def test_a_path_with_characters_of_its_own_is_enough(name, tmp_path):
    text = tmp_path / "xyz.txt"
    text.write_text("xyzzy\n" * 3000)  # in which no config's prompt can be written
    data = DataConfig(str(tmp_path / "d"), "chars", None, (str(text),), 0.2)
    prepare_shards(data, text_files(data.inputs))
    words = ["--config", name, "--data.path", data.path, "--train.sample-every-steps", "5"]
    words += ["--train.batch-tokens", str(2**14), "--train.micro-batch", "1"]
    made = Setup(parse_config(TrainCommand, words, "train").run)
    assert made.tokenizer.encode("zyx").tolist() == [3, 2, 1]
    with pytest.raises(UserError, match=r"sample\.prompt 'ab' "):
        Setup(parse_config(TrainCommand, [*words, "--sample.prompt", "ab"], "train").run)


def test_a_mixture_survives_json(sources):
    config = config_of(sources, "50=1,1,1,1,1", caps=":4")
    assert config_from_json(to_json(config), "config.json") == config


def test_it_is_announced_and_validated_source_by_source(sources):
    made = Setup(config_of(sources, "50=1,1,1,1,1", micro_batch=1))
    lines = made.data.announcement(0)
    assert re.match(r"mixture   59\.4% crawl: [\d,]+ tokens, epochs 0\.00 to \d\.\d\d$", lines[0])
    assert (len(lines), "50=1,1,1,1,1" in lines[-1]) == (6, True)
    parts = made.validation_parts()
    assert [part.name for part in parts] == list(NAMES)
    assert sum(part.share for part in parts) == pytest.approx(1)
    params = made.evaluated_params(made.program.initial_state())
    together = evaluate_parts(lambda batch: made.program.eval_step(params, batch), parts)
    losses = dict(together.by_source)
    expected = sum(part.share * losses[part.name] for part in parts)
    assert together.loss == pytest.approx(expected, rel=1e-12)
    assert min(losses.values()) < together.loss < max(losses.values())
    assert together.bits_per_byte == pytest.approx(together.loss / np.log(2), rel=0.02)


@pytest.mark.slow
@pytest.mark.usefixtures("one_compilation_for_all")
def test_a_run_killed_and_resumed_by_two_processes_is_fed_the_same_rows(sources, tmp_path):
    mixture = [f"{s}={w}" for s, w in zip(sources, WEIGHTS, strict=True)]
    words = ["--config", "tiny", "--data.mixture", *mixture, "--train.max-steps", STEPS,
             "--data.mixture-changes", "50=5,4,3,2,1", "150=1,1,1,1,1", "--train.context", 16,
             "--train.batch-tokens", 256, "--model.n-layer", 1, "--model.unroll", 1,
             "--train.save-every-steps", 70, "--train.eval-every-steps", STEPS,
             "--train.eval-tokens", 800]  # fmt: skip

    def start(name: str, process: int = 0, processes: int = 1, kill_after: int = 0) -> Any:
        """One process of a run whose devices are two in all."""
        command = [sys.executable, FED_ROWS, tmp_path / f"{name}-{process}-of-{processes}",
                   kill_after, *words, "--run-dir", tmp_path / name]  # fmt: skip
        if processes > 1:
            command += ["--coordinator", where, "--processes", processes, "--process", process]
        return subprocess.Popen([str(word) for word in command], cwd=tmp_path, text=True,
                                env=environment_on(2 // processes), stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT)  # fmt: skip

    def fed(name: str) -> dict[int, list]:
        lines = (tmp_path / name).read_text().splitlines()
        return {table["step"]: table["rows"] for table in map(json.loads, lines)}

    def rows(name: str) -> list[dict]:
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return [without_speed(json.loads(line)) for line in lines]

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{free.getsockname()[1]}"
    for name, kill_after, code in (("whole", 0, 0), ("broken", 100, -signal.SIGKILL)):
        process = start(name, kill_after=kill_after)
        said = process.communicate()[0]
        assert process.returncode == code, said
    both = [start("broken", process, 2) for process in (0, 1)]
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert "resuming" in said[0]

    whole, first = fed("whole-0-of-1"), fed("broken-0-of-1")
    second = [fed(f"broken-{process}-of-2") for process in (0, 1)]
    config = config_from_json((tmp_path / "whole" / "config.json").read_text(), "config.json")
    assert list(whole.values()) == batches(config, range(STEPS), 1).tolist()
    assert list(first) == list(range(len(first)))
    assert 100 <= len(first) < STEPS
    assert first.items() <= whole.items()
    resumed = {step: second[0][step] + second[1][step] for step in second[0]}
    assert resumed == {step: whole[step] for step in range(70 * (len(first) // 70), STEPS)}
    expected, found = rows("whole"), rows("broken")
    assert [row["step"] for row in found] == list(range(1, STEPS + 1))
    assert {f"{kind}/{n}" for n in NAMES for kind in ("val_loss", "epochs")} <= set(found[-1])
    for a, b in zip(expected, found, strict=True):
        assert b["train_loss"] == pytest.approx(a["train_loss"], rel=1e-6)
        assert b == pytest.approx(a, rel=1e-4)
