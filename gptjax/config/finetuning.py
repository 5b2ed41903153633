"""Rules about fine-tuning: which fields it needs, and which belong to it alone."""

from collections.abc import Iterator
from dataclasses import replace

from gptjax.config.schema import CLASSIFY, INSTRUCT, Config

Mistake = tuple[tuple[str, ...], str]


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
    if t.best_by != "loss" and c.task != CLASSIFY:
        message = f"train.best_by {t.best_by} needs a classification, and task is {c.task}"
        yield ("train.best_by", "task"), message
    if t.patience is not None and not (t.eval_every_steps or t.eval_every_epochs):
        message = "train.patience counts validations: give train.eval_every_epochs"
        yield ("train.patience", "train.eval_every_steps"), message
    if c.task not in (CLASSIFY, INSTRUCT):
        if t.patience is not None:
            message = f"train.patience is for a fine-tuning, and task is {c.task}"
            yield ("train.patience", "task"), message
        return
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
