"""Continuous batching: sequences join and leave the running batch between two calls of the device.

One thread owns the engine. It admits the sequence that waits longest as soon as a slot is free,
draws a few tokens for all running sequences, and tells the listeners. Every sequence has its own
key, so its tokens do not depend on what runs beside it.
"""

import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from gptjax.generation.engine import Engine
from gptjax.generation.requests import Event, GenerationRequest
from gptjax.generation.text_requests import sample_key
from gptjax.serving.jobs import Job, PromptScores
from gptjax.serving.metrics import ModelMetrics
from gptjax.serving.pace import Pace
from gptjax.serving.refusals import (
    Refusal,
    broken,
    invalid,
    out_of_time,
    queue_full,
    shutting_down,
)
from gptjax.serving.transcript import Piece


class Scheduler:
    """A bounded queue before an engine; everything public may be called from any thread.

    `max_queue` sequences may wait beside those in the slots. A sequence that takes longer than
    `timeout` seconds from its arrival is ended. `stop_tokens` end every sequence.
    """

    def __init__(
        self,
        engine: Engine,
        stop_tokens: tuple[int, ...],
        max_queue: int,
        timeout: float,
        metrics: ModelMetrics,
    ):
        self._engine, self._stop_tokens, self._metrics = engine, stop_tokens, metrics
        self.slots, self.max_queue, self.timeout = len(engine.free), max_queue, timeout
        self._pace = Pace()
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._beginning: list[Job] = []  # the one that has left the queue and has no slot yet
        self._running: dict[int, Job] = {}
        self._is_draining, self._is_stopped, self._has_failed = False, False, False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        metrics.watch(self.slots, lambda: len(self._running), lambda: len(self._waiting))

    @property
    def max_sequences(self) -> int:
        """The most sequences that fit at all: those of one request."""
        return self.slots + self.max_queue

    @property
    def is_healthy(self) -> bool:
        """Whether new requests are taken."""
        return not (self._is_draining or self._has_failed)

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        with self._changed:
            return not self._jobs()

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue the sequences of one request, all or none; raises `Refusal`."""
        with self._changed:
            if self._has_failed:
                raise broken()
            if self._is_draining:
                raise shutting_down()
            if len(jobs) > self.max_sequences:
                raise invalid("prompt", f"{len(jobs)} sequences are too many for this server")
            if len(self._jobs()) + len(jobs) > self.max_sequences:
                raise queue_full(len(self._waiting))
            self._waiting.extend(jobs)
            self._changed.notify()

    def cancel(self, jobs: Iterable[Job]) -> None:
        """End sequences that nobody listens to any more; those that have ended are left alone."""
        with self._changed:
            for job in jobs:
                job.is_cancelled = True
            self._changed.notify()

    def drain(self) -> None:
        """Refuse new requests from now on, and finish the others."""
        with self._changed:
            self._is_draining = True

    def stop(self) -> None:
        """End everything that still runs or waits, and the thread."""
        with self._changed:
            self._is_draining = self._is_stopped = True
            self._changed.notify()
        self._thread.join()

    def _jobs(self) -> list[Job]:
        return [*self._running.values(), *self._beginning, *self._waiting]

    def _work(self) -> None:
        try:
            sample_key(0)  # compiles it
            while self._has_work():
                self._sweep()
                self._admit()
                self._decode()
            for slot in self._running:
                self._engine.release(slot)
            self._end_all(shutting_down)
        except Exception:
            traceback.print_exc(file=sys.stderr)
            with self._changed:
                self._has_failed = True
            self._end_all(broken)

    def _has_work(self) -> bool:
        """Sleep until there is something to do; False after `stop`."""
        with self._changed:
            while not (self._is_stopped or self._running or self._waiting):
                self._changed.wait()
            return not self._is_stopped

    def _end_all(self, why: Callable[[], Refusal]) -> None:
        with self._changed:
            jobs = self._jobs()
            self._running.clear()
            self._beginning.clear()
            self._waiting.clear()
        for job in jobs:
            job.listen(why())

    def _sweep(self) -> None:
        """Drop the sequences that were cancelled or that are out of time."""
        oldest = time.perf_counter() - self.timeout
        with self._changed:
            ended = [job for job in self._waiting if job.is_cancelled or job.arrived < oldest]
            for job in ended:
                self._waiting.remove(job)
        for slot, job in list(self._running.items()):
            if job.is_cancelled or job.arrived < oldest:
                self._free(slot)
                ended.append(job)
        for job in ended:
            if not job.is_cancelled:
                job.listen(out_of_time(self.timeout))

    def _admit(self) -> None:
        """Begin waiting sequences: all that fit, or one if others run, which wait meanwhile."""
        was_running = bool(self._running)
        while (job := self._next()) is not None:
            self._metrics.began(len(job.prompt), time.perf_counter() - job.arrived)
            if job.wants_scores:
                job.listen(PromptScores(self._engine.score(job.prompt)))
            if job.max_tokens:
                self._begin(job)
            else:
                self._beginning.clear()
                job.listen(Piece("", (), "length", 0))
            if was_running or job.wants_scores:
                break

    def _next(self) -> Job | None:
        """Take the sequence that waits longest, if there is a slot or if it needs none."""
        with self._changed:
            if self._waiting and (self._engine.free or not self._waiting[0].max_tokens):
                self._beginning = [self._waiting.popleft()]
                return self._beginning[0]
        return None

    def _begin(self, job: Job) -> None:
        key = sample_key(job.seed, job.number)
        request = GenerationRequest(job.prompt, job.sample, key, self._stop_tokens)
        event = self._engine.admit(request, job.wants_top)
        with self._changed:
            self._running[event.slot] = job
            self._beginning.clear()
        self._metrics.spoke_first(time.perf_counter() - job.arrived)
        self._tell(event)

    def _decode(self) -> None:
        if not self._running:
            return
        with self._changed:
            is_hurried = bool(self._waiting and self._engine.free)
            shortest = self._waiting and not self._engine.free
        left = [job.left for job in self._running.values()]
        steps = self._pace.steps(min(left) if shortest else max(left), is_hurried)
        began = time.perf_counter()
        events = self._engine.decode(steps)
        seconds = time.perf_counter() - began
        self._pace.took(steps, seconds)
        for event in events:
            self._metrics.spoke(len(event.tokens), seconds)
            self._tell(event)

    def _tell(self, event: Event) -> None:
        """Give a sequence its tokens; free its slot at the end."""
        job = self._running[event.slot]
        piece = job.transcript.hear(event.tokens, event.finish)
        if piece.finish:
            self._free(event.slot)
        if not job.is_cancelled and (piece.text or piece.tokens or piece.finish):
            job.listen(piece)

    def _free(self, slot: int) -> None:
        self._engine.release(slot)
        with self._changed:
            del self._running[slot]
