"""Slots in which sequences are generated together; each joins and leaves whenever it likes.

    engine = Engine(cfg, params, capacity=8)
    event = engine.admit(GenerationRequest(prompt, sample, key, stop_tokens))
    while engine.running:
        for event in engine.decode(8): ...

`generate` and `serve` both stand on it. It knows tokens, not text. One program decodes for all
slots of one length of cache; the cache grows by doubling, and no result depends on its length.
"""

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from gptjax.base.tree import Tree
from gptjax.cluster.mesh import make_mesh
from gptjax.config import ModelConfig, SampleConfig
from gptjax.generation.decoding import CHUNK, KEYS, SCORED, STOP_TOKENS
from gptjax.generation.programs import programs
from gptjax.generation.requests import (
    Event,
    GenerationRequest,
    Token,
    drawn_tokens,
    sequence_row,
)
from gptjax.model.cache import PIECE, cache_length
from gptjax.model.decoder import decoder_config

SHORTEST_PROMPT = 16  # tokens to which short prompts are padded


class _Running:
    """A sequence in a slot, as the host sees it."""

    def __init__(self, request: GenerationRequest, limit: int, wants_top: bool):
        self.request, self.limit, self.wants_top = request, limit, wants_top
        self.drawn = 0
        self.is_going = True

    @property
    def length(self) -> int:
        """Tokens of the prompt and the text."""
        return len(self.request.prompt) + self.drawn


class Engine:
    """A model with `capacity` slots. One thread owns it.

    `params` is the parameter tree of `cfg`; the engine keeps a copy in `dtype`, layer by layer. If
    the parameters are divided over a `mesh`, so are the copy and the cache, and every process of
    the run must make the same calls. With `donate` the given arrays are deleted one by one while
    they are copied, so that memory never holds both. A slot holds up to `context` tokens, n_ctx by
    default. Raises `ValueError` if there would be no slot, or a slot would hold no token or more
    than n_ctx.
    """

    def __init__(
        self,
        cfg: ModelConfig,
        params: Tree,
        capacity: int = 1,
        context: int | None = None,
        dtype: str = "float32",
        mesh: Mesh | None = None,
        donate: bool = False,
    ):
        self.cfg = decoder_config(cfg, dtype)
        self.context = cfg.n_ctx if context is None else context
        if capacity < 1 or not 1 <= self.context <= cfg.n_ctx:
            raise ValueError(
                f"{capacity} slots of {context} tokens: expected 1 or more, of 1 to {cfg.n_ctx}"
            )
        self._programs = programs(self.cfg, mesh or _mesh_of(params))
        self._params = self._programs.place(params, donate)
        self._begin(capacity)

    def with_slots(self, capacity: int) -> "Engine":
        """An engine with slots of its own that reads the same parameters."""
        other = copy.copy(self)
        other._begin(capacity)
        return other

    def adapted(self, lora: ModelConfig, adapters: Tree) -> "Engine":
        """An engine with slots of its own for this model with low-rank adapters beside it.

        Of `lora` only the fields of LoRA are read. `adapters` is the model's tree with the leaves
        of the adapters alone, `{"h": {"attn": {"c_attn": {"lora_A": ..., "lora_B": ...}}}}`. All
        other parameters are this engine's own arrays.
        """
        other, fields = copy.copy(self), vars(lora).items()
        adapted = {name: value for name, value in fields if name.startswith("lora_")}
        other.cfg = dataclasses.replace(self.cfg, **adapted)
        other._programs = programs(other.cfg, self._programs.mesh)
        other._params = other._programs.place_beside(self._params, adapters)
        other._begin(self.capacity)
        return other

    def _begin(self, capacity: int) -> None:
        self.capacity, self._longest = capacity, cache_length(self.context)
        self._length = min(PIECE, self._longest)
        self._slots = self._programs.empty(capacity, self._length)
        self._held: dict[int, _Running] = {}
        self._read: tuple[tuple[int, ...], Any, Any, Any] | None = None  # the last prompt

    @property
    def free(self) -> list[int]:
        """Slots that hold no sequence."""
        return [slot for slot in range(self.capacity) if slot not in self._held]

    @property
    def running(self) -> list[int]:
        """Slots whose sequence goes on."""
        return [slot for slot, held in self._held.items() if held.is_going]

    def admit(self, request: GenerationRequest, wants_top: bool = False) -> Event:
        """Read the prompt of a sequence into a free slot and draw its first token.

        A prompt that was just read, as for several samples of it, is not read again. Raises
        `ValueError` for a prompt that is empty or longer than the context or has ids beyond the
        vocabulary, for more stop tokens than four, and if no slot is free.
        """
        prompt, stops = self._checked(request.prompt), request.stop_tokens
        if len(stops) > STOP_TOKENS or not self.free:
            raise ValueError(
                f"{len(stops)} stop tokens and {len(self.free)} free slots: expected up to "
                f"{STOP_TOKENS}, and at least 1"
            )
        slot, put = self.free[0], self._programs.put
        # the last token is drawn from a full context, and never read
        limit = min(request.sample.max_new_tokens, self.context - len(prompt) + 1)
        _, logits_BV, cache = self._read_prompt(prompt)
        sequence = jax.tree.map(put, sequence_row(self.cfg, request, prompt, limit))
        sequence, drawn = self._programs.begin(logits_BV, sequence, put(wants_top))
        self._held[slot] = _Running(request, limit, wants_top)
        self._resize()
        self._slots = self._programs.insert(self._slots, put(np.int32(slot)), cache, sequence)
        return self._event(slot, *(x[:, None] for x in map(np.asarray, drawn)))

    def decode(self, steps: int) -> list[Event]:
        """Draw up to `steps` tokens (1 to 32) for every running sequence, in one call.

        One event each, in the order of slots.
        """
        running = sorted(self.running)
        if not running:
            return []
        self._resize(steps := min(steps, CHUNK, max(self._left(slot) for slot in running)))
        wants_top = any(self._held[slot].wants_top for slot in running)
        put = self._programs.put
        self._slots, drawn = self._programs.decode(
            self._params, self._slots, put(np.int32(steps)), put(wants_top)
        )
        counts_B, *rest = map(np.asarray, drawn)
        return [
            self._event(slot, *(x[slot : slot + 1, : counts_B[slot]] for x in rest))
            for slot in running
        ]

    def release(self, slot: int) -> None:
        """Make a slot free, whether its sequence is finished or not."""
        if self._held.pop(slot).is_going:
            self._slots = self._programs.stand_still(
                self._slots, self._programs.put(np.int32(slot))
            )

    def score(self, tokens: Sequence[int]) -> list[Token]:
        """Every token but the first, with its log-probability after those before it, and its top.

        Raises `ValueError` unless there are 1 to `context` ids of the vocabulary.
        """
        prompt = self._checked(tokens)
        x_TD = np.asarray(self._read_prompt(prompt)[0])
        scored: list[Token] = []
        for start in range(0, len(prompt) - 1, SCORED):
            ids = prompt[start + 1 : start + 1 + SCORED]
            x_CD = np.zeros((SCORED, x_TD.shape[1]), x_TD.dtype)
            targets_C = np.zeros(SCORED, np.int32)
            x_CD[: len(ids)], targets_C[: len(ids)] = x_TD[start : start + len(ids)], ids
            put = self._programs.put
            found = self._programs.score(self._params, put(x_CD), put(targets_C))
            scored += drawn_tokens(ids, *map(np.asarray, found))
        return scored

    def warm_up(self) -> None:
        """Compile every program, so that nothing compiles later."""
        assert not self._held
        programs, put = self._programs, self._programs.put
        lengths, first, one = _doubling(PIECE, self._longest), put(np.int32(0)), put(np.int32(1))
        request = GenerationRequest([0], SampleConfig(), jax.random.key(0, impl=KEYS))
        sequence = jax.tree.map(put, sequence_row(self.cfg, request, (0,), 2))
        for tokens in _doubling(SHORTEST_PROMPT, self.context):
            self.admit(request._replace(prompt=[0] * tokens))
            self.release(0)
            cache = self._read_prompt((0,) * tokens)[2]
            for length in lengths:  # a short prompt may come while a long sequence runs
                if length >= cache_length(tokens):
                    self._set_length(length)
                    self._slots = programs.insert(self._slots, first, cache, sequence)
        self.score([0, 0])
        for length in lengths:
            for other in lengths:
                self._set_length(length)
                self._set_length(other)
            self._set_length(length)
            self._slots = programs.decode(self._params, self._slots, one, put(False))[0]
            self._slots = programs.stand_still(self._slots, first)
        self._resize()

    def _checked(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """Tokens as a tuple, if they fit."""
        ids, vocabulary = tuple(map(int, tokens)), self.cfg.n_vocab or 0
        if not 1 <= len(ids) <= self.context:
            raise ValueError(f"{len(ids)} tokens: expected 1 to {self.context}")
        if not 0 <= min(ids) <= max(ids) < vocabulary:  # they would leave nan in the cache
            raise ValueError(
                f"token ids from {min(ids)} to {max(ids)}: expected 0 to {vocabulary - 1}"
            )
        return ids

    def _read_prompt(self, prompt: tuple[int, ...]) -> tuple[Any, Any, Any]:
        if self._read is None or self._read[0] != prompt:
            self._read = None  # makes room
            padded = doubled_until(len(prompt), SHORTEST_PROMPT, self.context)
            row = np.zeros((1, padded), np.int32)
            row[0, : len(prompt)] = prompt
            put = self._programs.put
            read = self._programs.read(self._params, put(row), put(np.int32(len(prompt))))
            self._read = (prompt, *read)
        return self._read[1:]

    def _left(self, slot: int) -> int:
        return self._held[slot].limit - self._held[slot].drawn

    def _resize(self, steps: int = 0) -> None:
        """Give the cache the length that the sequences need for so many more tokens."""
        held = self._held.values()
        lengths = [min(h.length + steps, self.context) for h in held if h.is_going]
        needed = max(lengths, default=1)
        self._set_length(doubled_until(needed, PIECE, self._longest))

    def _set_length(self, length: int) -> None:
        if length != self._length:
            self._slots, self._length = self._programs.resize(self._slots, length), length

    def _event(self, slot: int, *found: np.ndarray) -> Event:
        held = self._held[slot]
        tokens = drawn_tokens(found[0][0].tolist(), *(x[0] for x in found[1:]))
        if not held.wants_top:
            tokens = [token._replace(top=()) for token in tokens]
        held.drawn += len(tokens)
        finish = None
        if tokens and tokens[-1].id in held.request.stop_tokens:
            finish = "stop"
        elif held.drawn >= held.limit:
            finish = "length"
        held.is_going = finish is None
        return Event(slot, tokens, finish)


def _mesh_of(params: Tree) -> Mesh:
    """The one device that has all parameters."""
    leaf = jax.tree.leaves(params)[0]
    devices = list(leaf.sharding.device_set) if isinstance(leaf, Array) else jax.local_devices()
    return make_mesh(devices[:1])


def doubled_until(needed: int, first: int, last: int) -> int:
    """The smallest of `first`, twice that and so on, or `last`, that is not below `needed`.

    So few sizes are compiled.

    >>> [doubled_until(n, first=16, last=100) for n in (1, 16, 17, 64, 65, 100)]
    [16, 16, 32, 64, 100, 100]
    """
    return next(n for n in _doubling(first, last) if n >= needed)


def _doubling(first: int, last: int) -> list[int]:
    """`first`, twice that and so on, and at the end `last`."""
    sizes = [min(first, last)]
    while sizes[-1] < last:
        sizes.append(min(2 * sizes[-1], last))
    return sizes
