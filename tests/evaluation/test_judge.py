"""A judge of responses: a server on this machine that answers well, badly, late or not at all."""

import pytest
from grading import Grader, grading

from gptjax.base.errors import ConfigError, UserError
from gptjax.data.templates import Message
from gptjax.evaluation.judge import describe_failures, judge_figures, judge_responses, read_score
from gptjax.evaluation.options import EvaluateCommand, check_flags
from gptjax.evaluation.responses import Response

pytest.importorskip("openai")


def responses(count: int) -> list[Response]:
    asked = Message("user", "Name a bird.", "It swims.")
    return [
        Response((asked, Message("assistant", f"Penguin {n}")), f"duck {n}", True)
        for n in range(count)
    ]


def judged(grader: Grader, count: int, done: list[int] | None = None):
    advance = (lambda n: None) if done is None else done.append
    return judge_responses(grader.url, "big", responses(count), advance)


def test_scores_are_averaged_and_the_judge_is_told_all_it_needs(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    done: list[int] = []
    with grading("80", " Score: 90.\n") as grader:
        verdicts = judged(grader, 2, done)
    figures = judge_figures(verdicts)
    assert figures["judge_score"] == 85.0
    assert figures["judge_score_stderr"] == pytest.approx(5.0)
    assert (figures["judged"], figures["judge_failures"]) == (2, 0)
    assert describe_failures(verdicts) is None
    assert done == [1, 1]
    assert [body["model"] for body in grader.bodies] == ["big", "big"]
    question = grader.bodies[1]["messages"][0]["content"]
    assert all(text in question for text in ("Name a bird.", "It swims.", "Penguin 1", "duck 1"))
    assert set(grader.keys) == {"Bearer secret"}


def test_replies_without_a_score_and_failures_are_counted(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    nothing = b'{"choices": []}'
    with grading("50", "good", "101", "7/10", nothing, b"not JSON", 500, 500, 500, 503, "60") as g:
        verdicts = judged(g, 8)
        assert g.answers == []  # each failing request was tried three times, or until it succeeded
    assert [v.score for v in verdicts] == [50, None, None, None, None, None, None, 60]
    figures = judge_figures(verdicts)
    assert (figures["judge_score"], figures["judged"], figures["judge_failures"]) == (55.0, 2, 6)
    failures = describe_failures(verdicts)
    assert failures is not None
    assert "6 of 8" in failures
    assert "status 500" in failures


def test_no_score_at_all_is_no_mean():
    with grading("?") as grader:
        assert judge_figures(judged(grader, 1))["judge_score"] is None


@pytest.mark.parametrize("status", [400, 401, 404])
def test_what_would_fail_every_time_ends_at_once(status):
    with grading(status) as grader, pytest.raises(UserError, match="refuses"):
        judged(grader, 3)


def test_an_address_where_nobody_is_ends_at_once():
    with grading() as grader:
        pass
    with pytest.raises(UserError, match="no judge answers at"):
        judged(grader, 3)


@pytest.mark.parametrize("reply", ["", "eighty", "-5", "50.5", "101", "80 of 100", "²"])
def test_a_reply_that_is_no_score_is_refused(reply):
    with pytest.raises(ValueError, match="0 to 100"):
        read_score(reply)


def test_an_address_needs_the_name_of_a_model():
    with pytest.raises(ConfigError, match="--judge-model") as caught:
        check_flags(EvaluateCommand(on="responses", data="a.json", judge="http://x/v1"), False)
    assert len(caught.value.problems) == 1
