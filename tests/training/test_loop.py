"""The order of a run's work: the table of due work, stop requests, samples of repeated steps."""

import dataclasses
import json
import math
import os
import re
import signal

import jax
import jax.numpy as jnp
import pytest
from small_runs import tiny, tiny_on

from gptjax.cluster.mesh import make_mesh, shardings
from gptjax.cluster.stop import StopRequest
from gptjax.config import Config, SampleConfig, TrainConfig
from gptjax.config.batches import BatchSchedule
from gptjax.config.presets import load_config
from gptjax.generation import during_training
from gptjax.generation.during_training import sample_after
from gptjax.generation.engine import Engine
from gptjax.model.gpt import init_params
from gptjax.model.places import ModelSharding
from gptjax.runs.samples import append_sample, forget_samples_after
from gptjax.tokenizers.registry import make_tokenizer
from gptjax.training import fit, loop
from gptjax.training.feed import due, steps_in_call
from gptjax.training.setup import Setup

TRAIN = TrainConfig(max_steps=10, eval_every_steps=4, sample_every_steps=6, save_every_steps=3)
NEVER = TrainConfig(max_steps=10, eval_every_steps=0, sample_every_steps=0, save_every_steps=0)
EVERYTHING = {"validate", "sample", "save"}


@pytest.mark.parametrize(
    ("train", "step", "stopping", "save_failed", "expected"),
    [
        (TRAIN, 1, False, False, set()),
        (TRAIN, 3, False, False, {"save"}),
        (TRAIN, 4, False, False, {"validate"}),
        (TRAIN, 6, False, False, {"sample", "save"}),
        (TRAIN, 8, False, False, {"validate"}),
        (TRAIN, 9, False, False, {"save"}),
        (TRAIN, 10, False, False, EVERYTHING),
        (TRAIN, 1, True, False, {"save"}),
        (TRAIN, 4, True, False, {"save"}),
        (TRAIN, 6, True, False, {"save"}),
        (TRAIN, 10, True, False, EVERYTHING),
        (TRAIN, 1, False, True, {"save"}),
        (TRAIN, 4, False, True, {"validate", "save"}),
        (TRAIN, 6, False, True, {"sample", "save"}),
        (TRAIN, 1, True, True, {"save"}),
        (NEVER, 5, False, False, set()),
        (NEVER, 5, True, False, {"save"}),
        (NEVER, 5, False, True, {"save"}),
        (NEVER, 10, False, False, {"save"}),
        (NEVER, 10, True, False, {"save"}),
    ],
)
def test_what_is_due_after_a_step(train, step, stopping, save_failed, expected):
    assert due(train, step, stopping, save_failed) == expected


@pytest.mark.parametrize(
    ("every", "validates", "steps"), [(3, 4, [3, 6, 9, 10]), (0, 4, [4, 8, 10]), (0, 0, [10])]
)
def test_published_tests_are_measured_with_every_validation_or_at_their_own_steps(
    every, validates, steps
):
    train = TrainConfig(
        max_steps=10, eval_every_steps=validates, evaluate_on=("lambada=file",),
        evaluate_on_every_steps=every, updates_per_call=10, save_every_steps=0,
        sample_every_steps=0,
    )  # fmt: skip
    assert [s for s in range(1, 11) if "measure" in due(train, s, False, False)] == steps
    ends, step = [], 0
    while step < 10:
        step += steps_in_call(train, BatchSchedule(1, 1, 0), step)
        ends.append(step)
    assert set(steps) <= set(ends)


def test_a_run_that_never_does_something_does_not_do_it_at_its_end():
    train = TrainConfig(max_steps=6, eval_every_steps=2, sample_every_steps=0, save_every_steps=0)
    assert [due(train, step, False, False) for step in range(1, 7)] == [
        set(), {"validate"}, set(), {"validate"}, set(), {"validate", "save"}
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGTERM, 128 + 15), (signal.SIGINT, 128 + 2)]
)
def test_the_first_signal_is_noted_and_decides_the_exit_code(number, exit_code):
    with StopRequest() as stop:
        assert not stop
        assert stop.exit_code == 0
        os.kill(os.getpid(), number)
        assert stop
        assert stop.signal == number
        assert stop.exit_code == exit_code


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_second_ctrl_c_interrupts_at_once(first):
    with StopRequest() as stop:
        os.kill(os.getpid(), first)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == first


def test_a_second_sigterm_is_patient():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.exit_code == 143


def test_handlers_are_as_before_afterwards():
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(n) for n in numbers]
    with StopRequest():
        assert [signal.getsignal(n) for n in numbers] != before
    assert [signal.getsignal(n) for n in numbers] == before


def sample(step: int) -> str:
    return f"## step {step}\n\n~~~text\ntext of {step}\n# heading\n~~~\n\n"


@pytest.mark.parametrize(
    ("step", "kept"), [(0, []), (19, []), (20, [20]), (45, [20, 40]), (60, [20, 40, 60])]
)
def test_samples_after_the_restored_step_are_forgotten(tmp_path, step, kept):
    path = tmp_path / "samples.md"
    path.write_text("".join(sample(n) for n in (20, 40, 60)))
    forget_samples_after(path, step)
    assert path.read_text() == "".join(sample(n) for n in kept)


def test_a_run_without_samples_gets_no_file(tmp_path):
    forget_samples_after(tmp_path / "samples.md", 3)
    assert list(tmp_path.iterdir()) == []


def test_a_sample_that_imitates_a_heading_does_not_stop_a_resumed_run(tmp_path):
    path = tmp_path / "samples.md"
    imitation = "## step 20\n\n~~~text\nprint('## step of the file')\n~~~\n\n"
    path.write_text(imitation + sample(40))
    forget_samples_after(path, 20)
    assert path.read_text() == imitation


def test_samples_that_are_kept_are_kept_byte_for_byte(tmp_path):
    path = tmp_path / "samples.md"
    content = b"## step 20\n\n~~~text\r\nab\rcd\n~~~\n\n"
    path.write_bytes(content + sample(40).encode())
    forget_samples_after(path, 20)
    assert path.read_bytes() == content


def test_a_sample_that_is_added_is_one_that_can_be_forgotten(tmp_path):
    path = tmp_path / "samples.md"
    for step in (20, 40):
        append_sample(path, step, f"text of {step}\n# heading")
    assert path.read_text() == sample(20) + sample(40)
    forget_samples_after(path, 20)
    assert path.read_text() == sample(20)


@pytest.mark.slow
def test_a_sample_of_divided_parameters_is_that_of_whole_ones(monkeypatch):
    """They are used where they lie: no device could hold them all."""
    config = load_config("tiny")
    cfg = dataclasses.replace(config.model, n_vocab=257)
    config = dataclasses.replace(
        config, model=cfg, sample=SampleConfig(prompt="ab", max_new_tokens=6)
    )
    tokenizer, params = make_tokenizer("bytes"), init_params(cfg, jax.random.key(1))
    seen = []

    class Watched(Engine):
        def __init__(self, cfg, params, **options):
            seen.append({len(x.sharding.device_set) for x in jax.tree.leaves(params)})
            super().__init__(cfg, params, **options)

    monkeypatch.setattr(during_training, "Engine", Watched)
    texts = []
    for split in (ModelSharding(), ModelSharding(fsdp=4), ModelSharding(fsdp=2, tensor=2)):
        mesh = make_mesh(split=split)
        placed = jax.device_put(params, shardings(params, params, mesh))
        texts.append(sample_after(3, config, placed, tokenizer, StopRequest(), lambda: None))
    assert texts[0] is not None
    assert texts[0].startswith("ab")
    assert texts == [texts[0]] * 3
    assert seen == [{1}, {8}, {8}]


@pytest.mark.slow
def test_a_stop_request_ends_a_sample():
    config = load_config("tiny")
    cfg = dataclasses.replace(config.model, n_vocab=257, n_layer=1)
    sample = SampleConfig(prompt="ab", max_new_tokens=200)
    config = dataclasses.replace(config, model=cfg, sample=sample)
    stop, beats = StopRequest(), []

    def heartbeat() -> None:
        beats.append(1)
        if len(beats) == 2:
            stop.signal = signal.SIGTERM

    params = init_params(cfg, jax.random.key(1))
    assert sample_after(3, config, params, make_tokenizer("bytes"), stop, heartbeat) is None
    assert len(beats) == 2


@pytest.fixture
def short(prepared) -> Config:
    """Four steps of the tiny model on the eight devices here, all of it watched."""
    fields = {
        "train.max_steps": 4, "train.eval_every_steps": 4, "train.sample_every_steps": 4,
        "train.profile": "1:2", "train.preflight": "on",
        "sample.prompt": "", "sample.max_new_tokens": 5, "sample.temperature": 0.0,
    }  # fmt: skip
    return tiny_on(prepared, fields)


@pytest.mark.slow
def test_a_run_tells_its_speed_and_looks_at_the_evaluated_parameters(short, tmp_path, monkeypatch):
    """With all parameters zero every token is as likely, and the likeliest one is the first."""
    events = []
    opened, compiled = loop.batches_from, Setup.compile_steps

    def open_batches(*args):
        events.append("open")
        return opened(*args)

    def compile_steps(setup, step):
        events.append(f"compile {step}")
        compiled(setup, step)

    monkeypatch.setattr(loop, "batches_from", open_batches)
    monkeypatch.setattr(Setup, "compile_steps", compile_steps)
    monkeypatch.setattr(
        Setup, "evaluated_params", lambda _, state: jax.tree.map(jnp.zeros_like, state.params)
    )
    assert fit.fit(short, tmp_path / "run") == 0
    assert events == ["compile 0", "open"]

    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["tokens"] for row in rows] == [512] * 4
    assert all(0 < row["data_wait"] < 10 for row in rows if "data_wait" in row)
    assert not any("mfu" in row for row in rows)  # nobody knows the peak of these processors
    # the trace's start and end are pauses: the steps there have no rate
    assert ["tokens_per_second" in row for row in rows] == [False, True, False, True]
    assert rows[-1]["val_loss"] == pytest.approx(math.log(257), rel=1e-5)
    assert rows[-1]["train_loss"] < 0.99 * math.log(257)
    samples = (tmp_path / "run/samples.md").read_bytes()
    assert samples == b"## step 4\n\n~~~text\n" + b"\0" * 5 + b"\n~~~\n\n"

    log = (tmp_path / "run/log.txt").read_text()
    seconds = r"\d+\.\d s"
    line = (
        rf"start-up  setup {seconds}, preflight {seconds}, compilation {seconds} "
        rf"\(cached: \w+\), initialisation {seconds}, first step {seconds}; {seconds} in all\n"
    )
    assert len(re.findall(line, log)) == 1
    assert log.index("start-up") < log.index("step 1/4")
    assert "traced steps 2 to 3: " in log
    assert len(list((tmp_path / "run/profile").rglob("*.xplane.pb"))) == 1


@pytest.mark.slow
def test_the_clock_saves_between_the_saves_of_steps_and_milestones_stay(prepared, tmp_path):
    """Every call is later than this clock allows, but for the one right after a save."""
    fields = {
        "train.save_every_minutes": 1e-6, "train.updates_per_call": 3, "train.max_steps": 30,
        "train.keep_every_steps": 8, "train.keep_latest": 2,
    }  # fmt: skip
    assert fit.fit(tiny(prepared, fields), tmp_path / "run") == 0
    kept = sorted(int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir())
    # calls end at 3, 6, 8, 11, 14, 16, 19, 22, 24, 27, 30: of these 8, 16 and 24 are milestones
    assert kept == [8, 16, 24, 30]
    fields["train.keep_latest"] = 99
    assert fit.fit(tiny(prepared, fields), tmp_path / "all") == 0
    kept = sorted(int(p.name) for p in (tmp_path / "all" / "checkpoints").iterdir())
    assert kept == [3, 8, 14, 16, 22, 24, 30]
