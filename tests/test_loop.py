"""What a run does when: the table of due work, requests to stop, samples of updates done again."""

import os
import signal

import pytest

from gptjax.config import TrainConfig
from gptjax.training.loop import _forget_samples_after, due
from gptjax.training.signals import StopRequest

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
def test_what_is_due_after_an_update(train, step, stopping, save_failed, expected):
    assert due(train, step, stopping, save_failed) == expected


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
    return f"## update {step}\n\n~~~text\ntext of {step}\n# heading\n~~~\n\n"


@pytest.mark.parametrize(
    ("step", "kept"), [(0, []), (19, []), (20, [20]), (45, [20, 40]), (60, [20, 40, 60])]
)
def test_samples_after_the_restored_update_are_forgotten(tmp_path, step, kept):
    path = tmp_path / "samples.md"
    path.write_text("".join(sample(n) for n in (20, 40, 60)))
    _forget_samples_after(path, step)
    assert path.read_text() == "".join(sample(n) for n in kept)


def test_a_run_without_samples_gets_no_file(tmp_path):
    _forget_samples_after(tmp_path / "samples.md", 3)
    assert list(tmp_path.iterdir()) == []


def test_a_sample_that_imitates_a_heading_does_not_stop_a_resumed_run(tmp_path):
    path = tmp_path / "samples.md"
    imitation = "## update 20\n\n~~~text\nprint('## update of the file')\n~~~\n\n"
    path.write_text(imitation + sample(40))
    _forget_samples_after(path, 20)
    assert path.read_text() == imitation


def test_samples_that_are_kept_are_kept_byte_for_byte(tmp_path):
    path = tmp_path / "samples.md"
    content = b"## update 20\n\n~~~text\r\nab\rcd\n~~~\n\n"
    path.write_bytes(content + sample(40).encode())
    _forget_samples_after(path, 20)
    assert path.read_bytes() == content
