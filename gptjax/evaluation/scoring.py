"""Scores given tokens after given contexts: the log-probability of each, and whether it is the top.

Everything that an evaluation measures with a causal model is such a request: the endings of a
multiple choice, the last word of a passage, the windows of a text. Requests are sorted by length
and run in a few padded shapes. Logits are formed for scored tokens only, a chunk at a time.

Letters: B batch, T time, D width, V vocabulary, M scored tokens of a batch, C tokens of a chunk.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from gptjax.base.errors import UserError
from gptjax.config import ModelConfig
from gptjax.model.decoder import decoder_config
from gptjax.model.gpt import GPT
from gptjax.model.products import dot_fp32_sum, materialised_on_cpu, matmul_precision

CHUNK = 128  # scored tokens whose logits exist at once
FINEST = 8  # rows are padded to a multiple of this, or of more if they are long
WAITING = 2  # batches that may run while the one before them is read
Tokens = Sequence[int] | np.ndarray


class Request(NamedTuple):
    """Tokens to score, and the tokens before them."""

    context: Tokens
    """At least one token id, such as end-of-text before the beginning of a text."""
    continuation: Tokens
    """At least one token id, and at most as many as the context of the model."""


class Score(NamedTuple):
    """The score of a `Request`."""

    logprob: float
    """Log-probability of the whole continuation after the context, in nats."""
    is_greedy: bool
    """Whether each of its tokens is the most likely one, so that greedy decoding writes it."""


@dataclass(frozen=True)
class _Row:
    """A row of the model's input, and the requests that read from it."""

    inputs: np.ndarray
    readers: list[int]


class Scorer:
    """A model that scores requests, many at a time.

    `params` is the float32 parameter tree of `cfg`. Products and activations have the type
    `dtype`, and a GPU multiplies float32 exactly. A context that does not fit is cut on the left,
    as lm-evaluation-harness does, so that at most `context` tokens are read; None takes n_ctx.
    Padding is on the right, where a causal model does not see it.
    """

    def __init__(
        self,
        cfg: ModelConfig,
        params: Any,
        batch_rows: int = 16,
        dtype: str = "float32",
        context: int | None = None,
    ):
        # one layer a loop: many shapes are compiled, and each is used a few times
        self.cfg = dataclasses.replace(decoder_config(cfg, dtype), unroll=1)
        self.params, self.batch_rows = params, batch_rows
        self.context = cfg.n_ctx if context is None else context
        self.shapes: set[tuple[int, int]] = set()
        """Batch and time of every program that ran so far."""
        self._precision = matmul_precision(self.cfg, jax.devices()[0])

    def score(
        self, requests: Sequence[Request], progress: Callable[[int], None] = lambda done: None
    ) -> list[Score]:
        """Score requests; results have their order.

        `progress` is called with the number of requests just finished. Raises `ValueError` for an
        empty context, and for a continuation that is empty or longer than the model's context;
        `UserError` if a log-probability is not finite.
        """
        scores = [Score(0.0, False)] * len(requests)
        for number, logprobs, tops in self._run(requests):
            scores[number] = Score(float(logprobs.sum(dtype=np.float64)), bool(tops.all()))
            progress(1)
        return scores

    def token_logprobs(
        self, requests: Sequence[Request], progress: Callable[[int], None] = lambda done: None
    ) -> list[np.ndarray]:
        """The log-probability of each token of each continuation, in nats: float32 arrays.

        Calls `progress` and raises as `score` does.
        """
        found = [np.empty(0, np.float32)] * len(requests)
        for number, logprobs, _ in self._run(requests):
            found[number] = logprobs
            progress(1)
        return found

    def _run(self, requests: Sequence[Request]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield the number, log-probabilities and tops of each request, in any order."""
        rows = sorted(self._rows(requests), key=lambda row: -len(row.inputs))
        waiting: deque[tuple[list[int], Array, Array]] = deque()

        def finish() -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
            numbers, logprobs_M, tops_M = waiting.popleft()
            logprobs, tops, at = np.asarray(logprobs_M), np.asarray(tops_M), 0
            if not np.isfinite(logprobs).all():
                raise UserError(
                    "the model gives log-probabilities that are no numbers: its parameters are not "
                    "finite, or too large for the type; try --dtype float32, or another checkpoint"
                )
            for number in numbers:
                end = at + len(requests[number].continuation)
                yield number, logprobs[at:end], tops[at:end]
                at = end

        for start in range(0, len(rows), self.batch_rows):
            batch = rows[start : start + self.batch_rows]
            waiting.append(self._dispatch(batch, requests))
            if len(waiting) > WAITING:
                yield from finish()
        while waiting:
            yield from finish()

    def _rows(self, requests: Sequence[Request]) -> list[_Row]:
        """The different inputs of all requests; some choices differ in their last token only."""
        rows: dict[bytes, _Row] = {}
        for number, (context, continuation) in enumerate(requests):
            if not len(context) or not 1 <= len(continuation) <= self.context:
                raise ValueError(
                    f"request {number} has {len(context)} tokens of context and "
                    f"{len(continuation)} to score: expected at least 1, and 1 to {self.context}"
                )
            tokens = np.concatenate([context, continuation]).astype(np.int32)
            inputs = tokens[-(self.context + 1) : -1]
            rows.setdefault(inputs.tobytes(), _Row(inputs, [])).readers.append(number)
        return list(rows.values())

    def _dispatch(
        self, batch: list[_Row], requests: Sequence[Request]
    ) -> tuple[list[int], Array, Array]:
        """Start a batch; returns its requests, and their scored tokens one after the other."""
        time = min(self.context, padded_length(max(len(row.inputs) for row in batch)))
        height = min(self.batch_rows, 1 << (len(batch) - 1).bit_length())
        tokens_BT = np.zeros((height, time), np.int32)
        numbers: list[int] = []
        places: list[np.ndarray] = []
        for at, row in enumerate(batch):
            tokens_BT[at, : len(row.inputs)] = row.inputs
            for number in row.readers:
                end = at * time + len(row.inputs)
                places.append(np.arange(end - len(requests[number].continuation), end))
                numbers.append(number)
        targets = np.concatenate([requests[number].continuation for number in numbers])
        # usually more targets than tokens mean that choices share their rows
        room = -(-max(len(targets), tokens_BT.size) // CHUNK) * CHUNK
        places_M, targets_M = np.zeros(room, np.int32), np.zeros(room, np.int32)
        places_M[: len(targets)], targets_M[: len(targets)] = np.concatenate(places), targets
        n_chunks = -(-len(targets) // CHUNK)
        self.shapes.add(tokens_BT.shape)
        with jax.default_matmul_precision(self._precision):
            found = _scored(self.cfg, self.params, tokens_BT, places_M, targets_M, n_chunks)
        return numbers, *found


def padded_length(length: int) -> int:
    """The length to which a row is padded: at most an eighth more from 64 tokens on.

    Few lengths are compiled: 16 up to 128 tokens, and 8 more for each doubling.

    >>> [padded_length(n) for n in (1, 64, 65, 129, 257, 1024)]
    [8, 64, 72, 144, 288, 1024]
    """
    step = max(FINEST, 1 << max(0, (length - 1).bit_length() - 4))
    return -(-length // step) * step


@partial(jax.jit, static_argnames="cfg")
def _scored(
    cfg: ModelConfig,
    params: Any,
    tokens_BT: Array,
    places_M: Array,
    targets_M: Array,
    n_chunks: Array,
) -> tuple[Array, Array]:
    """Log-probability of each target, and whether it is the top: float32 and bool, both [M].

    `places_M` are positions in the batch, row after row. Only `n_chunks` chunks are computed.
    """
    features: Any = GPT(cfg).apply({"params": params}, tokens_BT, method=GPT.features)
    x_BTD, head_VD = features
    x_ND = x_BTD.reshape(-1, x_BTD.shape[-1])
    head = head_VD.astype(x_ND.dtype)

    def chunk(number: Array, found: tuple[Array, Array]) -> tuple[Array, Array]:
        at = number * CHUNK
        places_C = lax.dynamic_slice_in_dim(places_M, at, CHUNK)
        targets_C = lax.dynamic_slice_in_dim(targets_M, at, CHUNK)
        logits_CV = dot_fp32_sum(x_ND[places_C], head, (1, 1), jnp.float32)
        logits_CV = materialised_on_cpu(logits_CV)[:, : cfg.n_vocab]
        target_C1 = jnp.take_along_axis(logits_CV, targets_C[:, None], axis=1)
        logprobs_C = target_C1[:, 0] - jax.nn.logsumexp(logits_CV, axis=1)
        # of equal logits the first is the top, as argmax says; XLA's argmax is slow on CPUs
        is_before_CV = jnp.arange(logits_CV.shape[1])[None] < targets_C[:, None]
        beats_CV = (logits_CV > target_C1) | ((logits_CV == target_C1) & is_before_CV)
        tops_C = ~beats_CV.any(axis=1)
        logprobs_M = lax.dynamic_update_slice_in_dim(found[0], logprobs_C, at, 0)
        return logprobs_M, lax.dynamic_update_slice_in_dim(found[1], tops_C, at, 0)

    nothing = jnp.zeros(targets_M.shape, jnp.float32), jnp.zeros(targets_M.shape, bool)
    return lax.fori_loop(0, n_chunks, chunk, nothing)
