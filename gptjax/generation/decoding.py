"""The compiled half of generation: prompts into slots, then a loop that draws tokens.

A slot is a row of the cache and of every setting. All slots decode together, whatever they hold, in
one program of a fixed shape. No row looks at another, so a sequence is the same in any company.

Letters: B slots, C tokens of a chunk, T time, V vocabulary, X stop tokens, P most likely tokens.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from gptjax.base.tree import Tree
from gptjax.config import ModelConfig
from gptjax.generation.samplers import Sampling, log_normaliser, sample
from gptjax.model.cache import Cache, empty_cache
from gptjax.model.decoder import extend, head_logits
from gptjax.model.places import ModelSharding

CHUNK = 32  # tokens that one call draws at most
STOP_TOKENS = 4  # that a sequence may have
TOP = 5  # most likely tokens that are reported on request
SCORED = 64  # given tokens whose logits exist at once
KEYS = "threefry2x32"  # the kind of random key, whatever jax's default is


class Sequences(NamedTuple):
    """What drawing needs to know of each sequence. Every leaf has one row a sequence."""

    tokens_B: Array
    """The last token, which is not in the cache yet."""
    keys_BW: Array
    """The words of the random keys; token i of a sequence is drawn with `fold_in(key, i)`."""
    drawn_B: Array
    """Tokens drawn so far."""
    limits_B: Array
    """Tokens to draw in all. A sequence that has reached its limit stands still."""
    stops_BX: Array
    """Tokens that end a sequence, filled up with -1."""
    seen_BV: Array
    """Whether a token is in the prompt or in the text so far, for the repetition penalty."""
    sampling: Sampling


class Slots(NamedTuple):
    """The state of the device: a cache, and the sequence of each of its rows."""

    cache: Cache
    sequences: Sequences


class Drawn(NamedTuple):
    """Tokens of a chunk with their log-probabilities; of each slot, the first `counts_B` count."""

    counts_B: Array
    tokens_BC: Array
    logprobs_BC: Array
    top_tokens_BCP: Array
    top_logprobs_BCP: Array


def empty_slots(cfg: ModelConfig, capacity: int, length: int, n_head: int | None = None) -> Slots:
    """Slots that stand still, with room for `length` tokens each."""
    zeros_B, ones_B = jnp.zeros(capacity, jnp.int32), jnp.ones(capacity)
    sequences = Sequences(
        zeros_B,
        jnp.zeros((capacity, 2), jnp.uint32),
        zeros_B,
        zeros_B,
        jnp.full((capacity, STOP_TOKENS), -1, jnp.int32),
        jnp.zeros((capacity, cfg.padded_vocab), bool),
        Sampling(ones_B, zeros_B, ones_B, jnp.zeros(capacity), ones_B),
    )
    return Slots(empty_cache(cfg, capacity, length, n_head=n_head), sequences)


def read_prompt(
    cfg: ModelConfig, split: ModelSharding, params: Tree, tokens_BT: Array, length: Array
) -> tuple[Array, Array, Cache]:
    """Read one prompt, padded at the end: features [T, D], the next token's logits, a cache of it.

    The logits are [1, V], and the cache has one row.
    """
    heads = cfg.n_head // split.tensor
    cache = empty_cache(cfg, 1, tokens_BT.shape[1], n_head=heads)
    x_BTD, cache = extend(cfg, params, tokens_BT, cache, split)
    last_B1D = lax.dynamic_slice_in_dim(x_BTD, length - 1, 1, axis=1)
    logits_BV = head_logits(cfg, params, last_B1D, split)[:, 0]
    return x_BTD[0], logits_BV, cache._replace(lengths_B=length[None])


def insert(slots: Slots, slot: Array, prompt: Cache, sequence: Sequences) -> Slots:
    """Put a prompt that was read, and its sequence of one row, into a slot."""

    def put(all_B: Array, own_B: Array) -> Array:
        return lax.dynamic_update_slice(all_B, own_B, (slot, *[0] * (all_B.ndim - 1)))

    return jax.tree.map(put, slots, Slots(prompt, sequence))


def stand_still(slots: Slots, slot: Array) -> Slots:
    """End the sequence of a slot before its limit."""
    sequences = slots.sequences
    limits_B = sequences.limits_B.at[slot].set(sequences.drawn_B[slot])
    return slots._replace(sequences=sequences._replace(limits_B=limits_B))


def score_features(
    cfg: ModelConfig, split: ModelSharding, params: Tree, x_TD: Array, targets_T: Array
) -> tuple[Array, Array, Array]:
    """Score given tokens by features: log-probabilities [T], and the most likely tokens [T, P].

    The features of position t predict token t + 1, which is `targets_T[t]`.
    """
    logits_TV = head_logits(cfg, params, x_TD[None], split)[0]
    total_T = log_normaliser(logits_TV)
    top_logits_TP, top_TP = lax.top_k(logits_TV, TOP)
    own_T1 = jnp.take_along_axis(logits_TV, targets_T[:, None], axis=1)
    return own_T1[:, 0] - total_T, top_TP, top_logits_TP - total_T[:, None]


def decode(
    cfg: ModelConfig,
    split: ModelSharding,
    params: Tree,
    slots: Slots,
    steps: Array,
    wants_top: Array,
) -> tuple[Slots, Drawn]:
    """Draw up to `steps` tokens for every slot, at most `CHUNK`; ends early if all stand still."""
    capacity = len(slots.sequences.tokens_B)

    def is_going(slots: Slots) -> Array:
        return slots.sequences.drawn_B < slots.sequences.limits_B

    def more(state: tuple[Array, Slots, Drawn]) -> Array:
        return (state[0] < steps) & is_going(state[1]).any()

    def step(state: tuple[Array, Slots, Drawn]) -> tuple[Array, Slots, Drawn]:
        number, slots, drawn = state
        is_going_B = is_going(slots)
        x_BTD, cache = extend(cfg, params, slots.sequences.tokens_B[:, None], slots.cache, split)
        logits_BV = head_logits(cfg, params, x_BTD, split)[:, 0]
        sequences, new = draw(logits_BV, slots.sequences, wants_top)
        # what stands still keeps its place; what it wrote behind its last token is never seen
        lengths_B = jnp.where(is_going_B, cache.lengths_B, slots.cache.lengths_B)
        sequences = sequences._replace(
            drawn_B=jnp.where(is_going_B, sequences.drawn_B, slots.sequences.drawn_B),
            limits_B=jnp.where(is_going_B, sequences.limits_B, slots.sequences.limits_B),
        )

        def note(all_BC: Array, new_B: Array) -> Array:
            return lax.dynamic_update_slice_in_dim(all_BC, new_B[:, None], number, axis=1)

        drawn = Drawn(
            drawn.counts_B + is_going_B,
            *(note(all_BC, new_B) for all_BC, new_B in zip(drawn[1:], new, strict=True)),
        )
        return number + 1, Slots(cache._replace(lengths_B=lengths_B), sequences), drawn

    nothing = Drawn(
        jnp.zeros(capacity, jnp.int32),
        jnp.zeros((capacity, CHUNK), jnp.int32),
        jnp.zeros((capacity, CHUNK)),
        jnp.zeros((capacity, CHUNK, TOP), jnp.int32),
        jnp.zeros((capacity, CHUNK, TOP)),
    )
    _, slots, drawn = lax.while_loop(more, step, (jnp.int32(0), slots, nothing))
    return slots, drawn


def draw(
    logits_BV: Array, sequences: Sequences, wants_top: Array
) -> tuple[Sequences, tuple[Array, Array, Array, Array]]:
    """Draw a token for each row: the sequences with it, and what `Drawn` says of it.

    Log-probabilities are those of the model: before the penalty, the temperature and the filters.
    """
    keys_B = jax.random.wrap_key_data(sequences.keys_BW, impl=KEYS)
    keys_B = jax.vmap(jax.random.fold_in)(keys_B, sequences.drawn_B)
    tokens_B = sample(logits_BV, sequences.seen_BV, sequences.sampling, keys_B)
    rows_B = jnp.arange(len(tokens_B))
    total_B = log_normaliser(logits_BV)
    logprobs_B = logits_BV[rows_B, tokens_B] - total_B

    def most() -> tuple[Array, Array]:
        top_logits_BP, top_tokens_BP = lax.top_k(logits_BV, TOP)
        return top_tokens_BP, top_logits_BP - total_B[:, None]

    def none() -> tuple[Array, Array]:
        shape = (len(tokens_B), TOP)
        return jnp.zeros(shape, jnp.int32), jnp.zeros(shape)

    top = lax.cond(wants_top, most, none)
    drawn_B = sequences.drawn_B + 1
    is_stop_B = (sequences.stops_BX == tokens_B[:, None]).any(axis=1)
    sequences = sequences._replace(
        tokens_B=tokens_B,
        drawn_B=drawn_B,
        limits_B=jnp.where(is_stop_B, drawn_B, sequences.limits_B),
        seen_BV=sequences.seen_BV.at[rows_B, tokens_B].set(True),
    )
    return sequences, (tokens_B, logprobs_B, *top)
