"""The end of an instruction run on a small random model: what it writes, and that it can stop."""

import signal
from types import SimpleNamespace

from live_server import random_params
from responding_model import a_run, conversation

from gptjax.cluster.stop import StopRequest
from gptjax.training.answering import PAGE, answer_test
from gptjax.training.finishing import Finished


def finished(tmp_path, asked, stop: StopRequest, beats: list[int]) -> Finished:
    data = SimpleNamespace(test_conversations=asked)

    def beat() -> None:
        beats.append(1)

    return Finished(a_run(random_params()), 1.5, data, tmp_path, lambda line: None, beat, stop)


def test_the_figures_and_the_page_are_those_of_the_test_split(tmp_path):
    beats: list[int] = []
    asked = [conversation("hi"), conversation("you")]
    results = answer_test(finished(tmp_path, asked, StopRequest(), beats))
    assert results is not None
    assert results["val_loss"] == 1.5
    assert (results["responses"], results["exact_match"]) == (2, 0.0)
    assert beats
    assert "\nyou\n" in (tmp_path / PAGE).read_text()


def test_a_stop_request_leaves_no_results(tmp_path):
    stop = StopRequest()
    stop.signal = signal.SIGTERM
    assert answer_test(finished(tmp_path, [conversation("hi")], stop, [])) is None
    assert list(tmp_path.iterdir()) == []


def test_without_a_test_split_there_is_the_validation_loss_alone(tmp_path):
    assert answer_test(finished(tmp_path, [], StopRequest(), [])) == {"val_loss": 1.5}
    assert list(tmp_path.iterdir()) == []
