"""Fine-tuning without its data: what a plan assumes, and what frozen parameters save.

A frozen matrix is multiplied forwards and passes gradients on, but has none of its own; blocks
before the first trained one are only multiplied forwards, unless an embedding is trained.
"""

from dataclasses import replace
from functools import cache

from gptjax.config import Config, ModelConfig
from gptjax.config.finetuning import from_scratch
from gptjax.config.schema import CLASSIFY, PRETRAIN
from gptjax.model.places import STACK, Leaf, leaves
from gptjax.model.size import flops_per_token
from gptjax.model.trainable import Trainable, trainable
from gptjax.planning.layout import with_vocabulary

TWO_CLASSES = 2  # where only the data tell how many there are
EMBEDDINGS = ("wte/embedding", "wpe/embedding")


def without_data(config: Config) -> Config:
    """The config with what its examples would decide: two classes, rows as long as the context.

    Without a model to start from nothing is frozen. Raises `ConfigError` like `with_vocabulary`.
    """
    config = config if config.train.init_from is not None else from_scratch(config)
    if config.task == PRETRAIN:
        return with_vocabulary(config)
    tokens = config.batch_rows * config.context
    config = replace(config, train=replace(config.train, batch_tokens=tokens, batch_rows=None))
    if config.task == CLASSIFY:
        asked, model = config.classify, config.model
        classes = 1 if asked.form == "choice" else len(asked.labels) or TWO_CLASSES
        model = replace(model, n_classes=classes, n_special=asked.special_ids)
        config = replace(config, model=model)
    return with_vocabulary(config)


def chosen_for_training(config: Config) -> Trainable:
    """The leaves that a run trains."""
    return trainable(config.model, config.optim.trainable, config.optim.trainable_layers)


@cache
def _trained_parts(model: ModelConfig, chosen: Trainable) -> tuple[Leaf, ...]:
    return tuple(part for leaf in leaves(model) if (part := chosen.part(leaf)) is not None)


def trained_parts(config: Config) -> list[Leaf]:
    """The trained parts of all leaves; cached, because a search asks for every micro-batch."""
    return list(_trained_parts(config.model, chosen_for_training(config)))


def blocks_backwards(config: Config) -> int:
    """Blocks that the backward pass goes through."""
    chosen = chosen_for_training(config)
    if any(name in chosen.names for name in EMBEDDINGS):
        return config.model.n_layer
    in_blocks = any(name.startswith(STACK) for name in chosen.names)
    return config.model.n_layer - chosen.first_block if in_blocks else 0


def sequences(config: Config) -> int:
    """Sequences of an example."""
    return config.classify.sequences if config.task == CLASSIFY else 1


def has_logits(config: Config) -> bool:
    """Whether a step scores the vocabulary."""
    return config.task != CLASSIFY or config.classify.lm_weight > 0


def head_is_trained(config: Config) -> bool:
    """Whether the head that scores the vocabulary has a gradient."""
    head = EMBEDDINGS[0] if config.model.tied_head else "lm_head"
    return head in chosen_for_training(config).names


def training_flops(config: Config) -> float:
    """Floating-point operations to train on one token, by `flops_per_token` without what is frozen.

    GPT-2 small with adapters of rank 16 beside all matrices needs two thirds of them.
    """
    model, chosen = config.model, chosen_for_training(config)
    found = leaves(model)
    blocks = sum(leaf.elements for leaf in found if leaf.is_block_matrix)
    adapters = sum(leaf.elements for leaf in found if "/lora_" in leaf.name)
    head = model.padded_vocab * model.n_embd if has_logits(config) else 0
    attention = flops_per_token(model, config.context) - flops_per_token(
        model, config.context, "none"
    )
    backwards = blocks_backwards(config) / model.n_layer
    trained = [part for leaf in found if (part := chosen.part(leaf)) is not None]
    own = sum(part.elements for part in trained if part.is_block_matrix)
    own += head if head_is_trained(config) else 0
    forwards = 2 * (blocks + adapters + head) + attention / 3
    passed_on = 2 * (backwards * (blocks + adapters) + head) + backwards * attention * 2 / 3
    own += sum(part.elements for part in trained if "/lora_" in part.name)
    return sequences(config) * (forwards + passed_on + 2 * own)
