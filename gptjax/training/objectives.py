"""What each kind of training minimises, as weighted sums over rows.

The model's features, its language-model loss and its classification meet here; what they read is
whatever the examples of a task hold. Letters as in `gpt`; S sequences of an example, C classes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from gptjax.config import ClassifyConfig, ModelConfig
from gptjax.model.attention import document_numbers
from gptjax.model.gpt import FROZEN_BLOCKS, GPT, logits
from gptjax.model.heads import class_scores, last_states
from gptjax.model.losses import cross_entropy, cross_entropy_rows, token_losses
from gptjax.model.parallel import copy_to_tensor, gathered
from gptjax.model.places import UNSHARDED, ModelSharding

Params = dict[str, Any]
Batch = dict[str, Array]
Measured = dict[str, Array]
EVALUATION_CHUNK = 2048  # tokens; evaluation never needs all logits at once

SPARSE_CHUNK = 128  # tokens; each chunk passes over the gradient of the whole head


def own_weights(batch: Batch) -> Array:
    """The weights that come with the examples."""
    return batch["weights"]


class Losses(NamedTuple):
    """The losses of a task over rows [B], as weighted sums in nats, never means.

    `loss` and `row_losses` read the weight of each target from `batch["weights"]`. The step has
    put the result of `weights` there, divided by the weight of the whole step and scaled: only the
    step knows that weight, and it is needed before anything is differentiated.
    """

    loss: Callable[[Params, Batch, Array | None], Array]
    """(params, batch, dropout key or None) -> the sum, for gradients; a key turns dropout on."""
    row_losses: Callable[[Params, Batch], Measured]
    """(params, batch) -> for evaluation, of each row: `loss`, its sum [B], and whatever else the
    task measures, under other names, [B, ...]."""
    weights: Callable[[Batch], Array] = own_weights
    """batch -> the weight of each target, float32; [B, ...], or [A, B, ...] of a whole step."""


def features_of(
    model: GPT,
    params: Params,
    tokens_BT: Array,
    documents_BT: Array | None,
    positions_BT: Array | None,
    key: Array | None,
) -> tuple[Array, Array]:
    """The input of the head and the head, by a device's own parameters; a key turns dropout on."""
    # a block gathers its own parameters, one layer at a time
    blocks = {name: params[name] for name in ("h", FROZEN_BLOCKS) if name in params}
    rest = {name: x for name, x in params.items() if name not in blocks}
    found: Any = model.apply(
        {"params": {**gathered(rest, model.split, model.cfg), **blocks}},
        tokens_BT,
        key is not None,
        documents_BT,
        positions_BT,
        rngs=None if key is None else {"dropout": key},
        method="features",
    )
    return found


def language_modelling(
    cfg: ModelConfig,
    loss_chunk_tokens: int = 0,
    split: ModelSharding = UNSHARDED,
    eot_id: int | None = None,
    sparse: bool = False,
) -> Losses:
    """Predict every next token: `tokens` [B, T + 1] against themselves, shifted by one.

    All targets have equal weight, unless the examples have `weights` [B, T]. If they have
    `documents` and `positions` [B, T], attention stays inside documents, and positions are these.

    The training loss holds the logits of `loss_chunk_tokens` tokens at once; 0 means all. `split`
    says how the parameters are divided, inside a `shard_map`. With an `eot_id` attention stays
    inside documents, each of which begins at that token. If weights are `sparse`, most targets have
    none, and their logits are left out wherever logits come in chunks.
    """
    model, n_vocab = GPT(cfg, split), cfg.n_vocab or 0
    # devices that divide the vocabulary go through all chunks together
    sparse = sparse and split.tensor == 1

    def features(params: Params, batch: Batch, key: Array | None) -> tuple[Array, Array]:
        inputs_BT = batch["tokens"][:, :-1]
        documents_BT = None if eot_id is None else document_numbers(inputs_BT, eot_id)
        documents_BT = batch.get("documents", documents_BT)
        inputs = inputs_BT, documents_BT, batch.get("positions")
        x_BTD, head_VD = features_of(model, params, *inputs, key)
        return copy_to_tensor(x_BTD, split), head_VD

    def loss(params: Params, batch: Batch, key: Array | None) -> Array:
        x_BTD, head_VD = features(params, batch, key)
        targets_BT, weights_BT = batch["tokens"][:, 1:], batch["weights"]
        if loss_chunk_tokens == 0 and split.tensor == 1:
            logits_BTV = logits(x_BTD, head_VD, n_vocab)
            return cross_entropy_rows(logits_BTV, targets_BT, weights_BT).sum()
        chunk = loss_chunk_tokens or targets_BT.size
        chunk = min(chunk, _sparse_chunk(targets_BT.size)) if sparse else chunk
        inputs = x_BTD, head_VD, targets_BT, weights_BT
        return cross_entropy(*inputs, n_vocab, chunk, split, only_weighted=sparse)

    def row_losses(params: Params, batch: Batch) -> Measured:
        x_BTD, head_VD = features(params, batch, None)
        targets_BT, weights_BT = batch["tokens"][:, 1:], batch["weights"]
        inputs = x_BTD, head_VD, targets_BT
        if sparse:
            chunk = min(EVALUATION_CHUNK, _sparse_chunk(targets_BT.size))
            losses_BT = token_losses(*inputs, n_vocab, chunk, split, weights_BT)
        else:
            losses_BT = token_losses(*inputs, n_vocab, EVALUATION_CHUNK, split)
        return {"loss": (losses_BT * weights_BT).sum(1)}

    def weights(batch: Batch) -> Array:
        if "weights" in batch:
            return own_weights(batch)
        return jnp.ones(batch["tokens"][..., 1:].shape, jnp.float32)

    return Losses(loss, row_losses, weights)


def _sparse_chunk(tokens: int) -> int:
    """Tokens of a chunk where most have no weight: small, so that few are computed in vain."""
    return max(SPARSE_CHUNK, tokens // 8)


def classification(
    cfg: ModelConfig,
    classify: ClassifyConfig,
    loss_chunk_tokens: int = 0,
    split: ModelSharding = UNSHARDED,
) -> Losses:
    """Predict the label of each row, and with `lm_weight` every next token of its sequences.

    Radford et al. (2018), section 3.2. `tokens` [B, S, T] are padded after `lengths` [B, S]; the
    head reads the state of each last token. The loss of a row is the cross-entropy of `label` [B],
    times `class_weight` [B], and `lm_weight` times the mean over its sequences of the mean loss of
    a token; `weights` [B] is the weight of a row. In the language model, special tokens count.
    """
    model, n_vocab = GPT(cfg, split), (cfg.n_vocab or 0) + cfg.n_special

    def states(params: Params, batch: Batch, key: Array | None) -> tuple[Array, Array, Array]:
        """Features [B S, T, D], the head that predicts tokens, and the scores [B, C]."""
        tokens_BST, (keys, own) = batch["tokens"], _two_keys(key)
        tokens_MT = tokens_BST.reshape(-1, tokens_BST.shape[-1])
        x_MTD, head_VD = features_of(model, params, tokens_MT, None, None, keys)
        state_BSD = last_states(x_MTD, batch["lengths"])
        scores_BC = class_scores(cfg, classify.form, params["clf"], state_BSD, own)
        return x_MTD, head_VD, scores_BC

    def targets(batch: Batch, weights_B: Array) -> tuple[Array, Array]:
        """Next tokens [B S, T], and weights by which the losses of a row add up to a mean."""
        tokens_BST, lengths_BS = batch["tokens"], batch["lengths"]
        sequences, time = tokens_BST.shape[1:]
        next_BST = jnp.pad(tokens_BST[:, :, 1:], ((0, 0), (0, 0), (0, 1)))
        is_target_BST = jnp.arange(time)[None, None] < lengths_BS[:, :, None] - 1
        share_BS = weights_B[:, None] / (sequences * jnp.maximum(1, lengths_BS - 1))
        weights_BST = jnp.where(is_target_BST, share_BS[:, :, None], 0.0)
        return next_BST.reshape(-1, time), weights_BST.reshape(-1, time)

    def label_losses(scores_BC: Array, batch: Batch) -> Array:
        logprobs_BC = jax.nn.log_softmax(scores_BC)
        found_B1 = jnp.take_along_axis(logprobs_BC, batch["label"][:, None], axis=1)
        return -found_B1[:, 0] * batch["class_weight"]

    def loss(params: Params, batch: Batch, key: Array | None) -> Array:
        x_MTD, head_VD, scores_BC = states(params, batch, key)
        total = jnp.sum(label_losses(scores_BC, batch) * batch["weights"])
        if classify.lm_weight == 0:
            return total
        next_MT, weights_MT = targets(batch, classify.lm_weight * batch["weights"])
        chunk = loss_chunk_tokens or next_MT.size
        x_MTD = copy_to_tensor(x_MTD, split)
        return total + cross_entropy(x_MTD, head_VD, next_MT, weights_MT, n_vocab, chunk, split)

    def row_losses(params: Params, batch: Batch) -> Measured:
        x_MTD, head_VD, scores_BC = states(params, batch, None)
        loss_B = label_losses(scores_BC, batch) * batch["weights"]
        classes = scores_BC.shape[1]
        truth_BC = jax.nn.one_hot(batch["label"], classes)
        guess_BC = jax.nn.one_hot(jnp.argmax(scores_BC, axis=1), classes)
        if classify.lm_weight:
            next_MT, weights_MT = targets(batch, classify.lm_weight * batch["weights"])
            x_MTD = copy_to_tensor(x_MTD, split)
            losses_MT = token_losses(x_MTD, head_VD, next_MT, n_vocab, EVALUATION_CHUNK, split)
            loss_B = loss_B + (losses_MT * weights_MT).sum(1).reshape(len(loss_B), -1).sum(1)
        return {"loss": loss_B, "confusion": truth_BC[:, :, None] * guess_BC[:, None]}

    return Losses(loss, row_losses)


def _two_keys(key: Array | None) -> tuple[Array | None, Array | None]:
    """Independent keys for the model and for the head; none without dropout."""
    if key is None:
        return None, None
    first, second = jax.random.split(key)
    return first, second
