"""The scheduler: who runs, who waits, who is told what; with a real engine that a test can hold."""

import threading
import time

import pytest
from live_server import TOKENIZER, HeldEngine, held_engine, make_scheduler, wait_until

from gptjax.config import SampleConfig
from gptjax.serving.jobs import Job, PromptScores
from gptjax.serving.pace import MOST_STEPS, Pace
from gptjax.serving.refusals import Refusal
from gptjax.serving.transcript import Piece, Transcript


@pytest.fixture(scope="module")
def engine() -> HeldEngine:
    return held_engine()


@pytest.fixture
def scheduler(engine):
    made = make_scheduler(engine)
    yield made
    engine.gate.set()
    made.stop()
    engine.error = None
    assert len(engine.free) == 2


class Heard(list):
    """What a job said."""

    @property
    def text(self) -> str:
        return "".join(news.text for news in self if isinstance(news, Piece))

    @property
    def end(self):
        last = self[-1] if self else None
        return last if isinstance(last, Refusal) or getattr(last, "finish", None) else None


def job(prompt: str = "ab", tokens: int = 8, seed: int = 0, **more) -> tuple[Job, Heard]:
    heard = Heard()
    sample = SampleConfig(max_new_tokens=max(1, tokens), temperature=1.0, top_k=None)
    ids = tuple(TOKENIZER.encode(prompt).tolist())
    made = Job(ids, sample, tokens, seed, 0, Transcript(TOKENIZER), heard.append, **more)
    return made, heard


def hold(engine, scheduler, count: int) -> list[tuple[Job, Heard]]:
    """Running jobs that stand still in the device."""
    engine.gate.clear()
    pairs = [job(tokens=40, seed=i) for i in range(count)]
    scheduler.submit([made for made, _ in pairs])
    wait_until(lambda: all(heard for _, heard in pairs))
    return pairs


def finished(scheduler, *pairs) -> None:
    scheduler.submit([made for made, _ in pairs])
    wait_until(lambda: all(heard.end for _, heard in pairs))


def test_the_same_seed_gives_the_same_text_alone_and_in_company(scheduler):
    alone = [job("ab", 12, seed) for seed in range(6)]
    for pair in alone:
        finished(scheduler, pair)
    together = [job("ab", 12, seed) for seed in range(6)]
    finished(scheduler, *together)
    assert [heard.text for _, heard in together] == [heard.text for _, heard in alone]
    assert len({heard.text for _, heard in alone}) > 3


def test_a_sequence_joins_a_running_batch_and_leaves_it(engine, scheduler):
    (_, long), (short_job, short) = job(tokens=60), job(tokens=2)
    engine.gate.clear()
    scheduler.submit([job_ := job(tokens=60)[0]])
    wait_until(lambda: len(engine.free) == 1)
    scheduler.submit([short_job])
    engine.gate.set()
    wait_until(lambda: short.end)
    assert short.end.finish == "length"
    scheduler.cancel([job_])
    wait_until(lambda: scheduler.is_idle)
    assert long == []


def test_the_queue_is_bounded_and_a_request_is_taken_whole_or_not(engine, scheduler):
    hold(engine, scheduler, 2)
    waiting = [job() for _ in range(3)]
    scheduler.submit([made for made, _ in waiting])
    two = [job(), job()]
    with pytest.raises(Refusal) as caught:
        scheduler.submit([made for made, _ in two])
    assert (caught.value.status, caught.value.code) == (429, "queue_full")
    assert "Retry-After" in caught.value.headers
    scheduler.submit([two[0][0]])  # there is room for one
    engine.gate.set()
    wait_until(lambda: two[0][1].end and all(heard.end for _, heard in waiting))
    assert two[1][1] == []
    with pytest.raises(Refusal) as caught:  # would never fit
        scheduler.submit([job()[0] for _ in range(7)])
    assert caught.value.status == 400


def test_a_cancelled_sequence_leaves_within_one_call_and_is_told_nothing(engine, scheduler):
    (first, heard), (second, _) = hold(engine, scheduler, 2)
    (waiting, waited), (next_job, next_heard) = job(), job(tokens=1)
    calls_before_next: list[int] = []
    next_job.listen = lambda news: (
        calls_before_next.append(len(engine.steps)),
        next_heard.append(news),
    )
    scheduler.submit([waiting, next_job])
    said, calls = len(heard), len(engine.steps)
    scheduler.cancel([first, waiting])
    engine.gate.set()
    wait_until(lambda: next_heard.end)
    assert calls_before_next == [calls + 1]  # the call under way
    assert len(heard) == said
    assert waited == []
    scheduler.cancel([second])
    wait_until(lambda: scheduler.is_idle)


def test_what_takes_too_long_is_ended_wherever_it_is(engine):
    scheduler = make_scheduler(engine, timeout=0.3)
    pairs = hold(engine, scheduler, 2)
    pairs.append(waiting := job())
    scheduler.submit([waiting[0]])
    wait_until(lambda: time.perf_counter() > waiting[0].arrived + 0.35)
    engine.gate.set()
    wait_until(lambda: all(heard.end for _, heard in pairs))
    assert {heard.end.code for _, heard in pairs} == {"timeout"}
    wait_until(lambda: scheduler.is_idle)
    scheduler.stop()


def test_an_error_of_the_engine_fails_everything_and_hangs_nobody(engine, scheduler, capsys):
    pairs = hold(engine, scheduler, 2)
    pairs.append(waiting := job())
    scheduler.submit([waiting[0]])
    engine.error = RuntimeError("the device is gone")
    engine.gate.set()
    wait_until(lambda: all(heard.end for _, heard in pairs))
    assert {heard.end.status for _, heard in pairs} == {500}
    assert not scheduler.is_healthy
    with pytest.raises(Refusal) as caught:
        scheduler.submit([job()[0]])
    assert caught.value.status == 500
    assert "the device is gone" in capsys.readouterr().err
    for slot in range(2):
        engine.release(slot)


def test_draining_finishes_what_was_accepted_and_refuses_the_rest(engine, scheduler):
    (_, first), (_, second) = hold(engine, scheduler, 2)
    waiting, waited = job(tokens=2)
    scheduler.submit([waiting])
    scheduler.drain()
    assert not scheduler.is_healthy
    with pytest.raises(Refusal) as caught:
        scheduler.submit([job()[0]])
    assert (caught.value.status, caught.value.code) == (503, "shutting_down")
    assert not scheduler.is_idle
    engine.gate.set()
    wait_until(lambda: scheduler.is_idle)
    assert {heard.end.finish for heard in (first, second, waited)} <= {"length", "stop"}


def test_stopping_ends_what_still_runs(engine):
    scheduler = make_scheduler(engine)
    (_, first), _ = hold(engine, scheduler, 2)
    waiting, waited = job()
    scheduler.submit([waiting])
    scheduler.drain()
    stopping = threading.Thread(target=scheduler.stop)
    stopping.start()
    engine.gate.set()
    stopping.join(10)
    assert (first.end.status, waited.end.status) == (503, 503)
    assert engine.free == [0, 1]


def test_a_prompt_is_scored_without_a_slot(engine, scheduler):
    made, heard = job("abcd", tokens=0, wants_scores=True)
    finished(scheduler, (made, heard))
    assert isinstance(heard[0], PromptScores)
    assert [token.id for token in heard[0].tokens] == TOKENIZER.encode("bcd").tolist()
    assert heard.end == Piece("", (), "length", 0)


def test_calls_are_short_while_someone_waits_and_longer_otherwise():
    slow, fast = Pace(), Pace()
    assert fast.steps(100, False) == 1  # nothing is known yet
    for _ in range(20):
        slow.took(1, 0.2)
        fast.took(1, 0.001)
    assert (slow.steps(100, False), slow.steps(100, True)) == (1, 1)
    assert fast.steps(100, False) == MOST_STEPS
    assert 1 < fast.steps(100, True) < MOST_STEPS
    assert fast.steps(3, False) == 3
