"""Rules about fine-tuning: which fields it needs, and which belong to it alone."""

from collections.abc import Iterator
from dataclasses import replace

from gptjax.config.origins import value_of
from gptjax.config.schema import CLASSIFY, INSTRUCT, PRETRAIN, Config

Mistake = tuple[tuple[str, ...], str]
_IN_EPOCHS = {
    "train.epochs": "train.max_steps",
    "train.batch_rows": "train.batch_tokens",
    "train.eval_every_epochs": "train.eval_every_steps",
    "train.patience": "train.max_steps",
    "optim.warmup_fraction": "optim.warmup_steps",
}


def from_scratch(config: Config) -> Config:
    """The config of a run that starts from no model: it has nothing to freeze, so it trains all."""
    optim = replace(config.optim, trainable=(), trainable_layers=None)
    return replace(config, model=replace(config.model, lora_rank=0), optim=optim)


def finetuning_mistakes(c: Config) -> Iterator[Mistake]:
    """Yield every broken rule: its fields, and a message."""
    m, d, o, t = c.model, c.data, c.optim, c.train
    at_least_one = {
        "train.batch_rows": t.batch_rows, "train.patience": t.patience,
        "optim.trainable_layers": o.trainable_layers,
        "instruct.test_responses": c.instruct.test_responses,
    }  # fmt: skip
    for name, value in at_least_one.items():
        if value is not None and value < 1:
            yield (name,), f"{name} must be at least 1, not {value}"
    not_negative = {
        "model.lora_rank": m.lora_rank, "model.n_classes": m.n_classes,
        "model.n_special": m.n_special, "data.split_seed": d.split_seed,
    }  # fmt: skip
    for name, value in not_negative.items():
        if value < 0:
            yield (name,), f"{name} must be 0 or more, not {value}"
    positive = {
        "train.epochs": t.epochs, "train.eval_every_epochs": t.eval_every_epochs,
        "model.lora_alpha": m.lora_alpha,
    }  # fmt: skip
    for name, value in positive.items():
        if value is not None and not 0 < value < float("inf"):
            yield (name,), f"{name} must be above 0, not {value}"
    probabilities = {
        "model.clf_pdrop": m.clf_pdrop, "model.lora_dropout": m.lora_dropout,
        "optim.warmup_fraction": o.warmup_fraction or 0.0,
    }  # fmt: skip
    for name, value in probabilities.items():
        if not 0 <= value < 1:
            yield (name,), f"{name} must be in [0, 1), not {value}"
    if not 0 <= d.test_fraction <= 0.5:
        yield (
            ("data.test_fraction",),
            f"data.test_fraction must be in [0, 0.5], not {d.test_fraction}",
        )
    if not 0 <= c.classify.lm_weight < float("inf"):
        message = f"classify.lm_weight must be 0 or more, not {c.classify.lm_weight}"
        yield ("classify.lm_weight",), message
    if m.lora_rank and o.trainable:
        message = (
            "optim.trainable goes without model.lora_rank, which trains adapters and a head alone: "
            "leave one out, by --optim.trainable with no names or --model.lora-rank 0"
        )
        yield ("optim.trainable", "model.lora_rank"), message
    if t.best_by != "loss" and c.task != CLASSIFY:
        message = f"train.best_by {t.best_by} needs a classification, and task is {c.task}"
        yield ("train.best_by", "task"), message
    if t.patience is not None and not (t.eval_every_steps or t.eval_every_epochs):
        message = "train.patience counts validations: give train.eval_every_epochs"
        yield ("train.patience", "train.eval_every_steps"), message
    if c.task == PRETRAIN:
        for name, instead in _IN_EPOCHS.items():
            if value_of(c, name) is not None:
                yield (name, "task"), f"{name} is for fine-tuning: pretraining has {instead}"
    if c.task not in (CLASSIFY, INSTRUCT):
        return
    files = {
        "data.examples": d.examples, "data.val_examples": d.val_examples,
        "data.test_examples": d.test_examples,
    }  # fmt: skip
    for name, value in files.items():
        if value is not None and not value.strip():
            yield (name,), f"{name} is an empty name: expected a file of examples"
    shares = {
        "data.val_fraction": 0.0 if d.val_examples else d.val_fraction,
        "data.test_fraction": 0.0 if d.test_examples else d.test_fraction,
    }
    if sum(shares.values()) >= 1:
        words = " and ".join(f"{name} {value}" for name, value in shares.items())
        yield tuple(shares), f"{words} leave nothing for training: hold less out"
    if d.input_format == "text":
        yield (
            ("data.input_format", "task"),
            "data.input_format text has no fields: examples are TSV, CSV, JSON or Parquet",
        )
    if c.task == CLASSIFY:
        yield from _labelled_mistakes(c)
    if d.document_mask:
        yield (
            ("data.document_mask", "task"),
            "data.document_mask is for pretraining: examples of a fine-tuning never see each other",
        )
    if t.ramp_from_tokens is not None:
        yield (
            ("train.ramp_from_tokens", "task"),
            "train.ramp_from_tokens is for pretraining: a fine-tuning has the same number of "
            "examples in every step",
        )


def _labelled_mistakes(c: Config) -> Iterator[Mistake]:
    """Forms of input and the fields that go with them."""
    d, classify = c.data, c.classify
    form = classify.form
    if classify.read == "last" and form != "single":
        yield (
            ("classify.read", "classify.form"),
            f"classify.read last has no token between two texts, which classify.form {form} needs: "
            "take classify.read extract",
        )
    if d.pair_field is not None and form not in ("pair", "similarity"):
        yield (
            ("data.pair_field", "classify.form"),
            f"data.pair_field is a second text, and classify.form {form} has none: take "
            "classify.form pair or similarity",
        )
    if d.choice_fields and (form != "choice" or len(d.choice_fields) < 2):
        yield (
            ("data.choice_fields", "classify.form"),
            "data.choice_fields are two answers or more of classify.form choice, not "
            f"{len(d.choice_fields)} of classify.form {form}",
        )
    if classify.balance != "none" and form == "choice":
        yield (
            ("classify.balance", "classify.form"),
            f"classify.balance {classify.balance} is for classes, and those of classify.form "
            "choice are only places of the right answer: take classify.balance none",
        )
    if len(set(classify.labels)) < len(classify.labels):
        yield ("classify.labels",), f"classify.labels has a class twice: {classify.labels}"
