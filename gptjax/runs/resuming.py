"""Which settings may change when a run resumes, in three classes, and how a change is shown.

Free settings decide where a run finds its data, how fast it is and what it writes. Announced ones
change what it learns from here on. Refused ones would make another run of it. Files of data are
free, because it is their content that counts: its fingerprint is compared with the checkpoint's.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gptjax.base.errors import UserError
from gptjax.config.origins import as_words, flag_of
from gptjax.config.schema import CLASSIFY, INSTRUCT

FREE = (
    "data.path", "data.tokenizer", "data.source", "data.inputs", "data.input_format",
    "data.text_field", "data.doc_separator", "data.hub", "data.val_fraction", "data.mixture",
    "data.verify", "data.examples", "data.val_examples", "data.test_examples", "data.header",
    "data.label_field", "data.pair_field", "data.choice_fields", "instruct.test_responses",
    "sample.prompt", "sample.max_new_tokens", "sample.temperature", "sample.top_k",
    "sample.top_p", "sample.min_p", "sample.repetition_penalty", "sample.stop", "mesh.data",
    "mesh.fsdp", "mesh.tensor", "train.micro_batch", "train.cpu_devices",
    "train.loss_chunk_tokens", "train.updates_per_call", "train.deterministic", "train.profile",
    "train.eval_every_steps", "train.eval_every_epochs", "train.evaluate_on",
    "train.evaluate_on_every_steps", "train.evaluate_on_limit", "train.sample_every_steps",
    "train.save_every_steps", "train.save_every_minutes", "train.keep_latest",
    "train.keep_every_steps", "train.checkpoint_dir", "train.stall_seconds", "train.preflight",
    "train.price", "train.track", "model.unroll", "model.attention", "model.remat",
)  # fmt: skip
"""Fields about places of data, speed, intervals and output."""
ANNOUNCED = (
    "optim.peak_lr", "optim.final_lr", "optim.schedule", "optim.warmup_steps",
    "optim.warmup_fraction", "optim.decay_steps", "optim.rewarm_steps",
    "optim.cooldown_fraction", "optim.weight_decay", "optim.beta1", "optim.beta2", "optim.eps",
    "optim.muon_momentum", "optim.clip_norm", "train.max_steps", "train.epochs",
    "train.batch_tokens", "train.batch_rows", "train.ramp_from_tokens", "train.ramp_steps",
    "train.patience", "train.best_by", "train.eval_tokens", "train.skip_zscore",
    "train.rollback_zscore", "train.wire_dtype", "data.mixture_changes", "model.dtype",
    "model.float32_matmul", "model.embd_pdrop", "model.attn_pdrop", "model.resid_pdrop",
    "model.clf_pdrop", "model.lora_dropout",
)  # fmt: skip
"""Fields that change what a run learns or measures from here on."""
REFUSED = (
    "task", "model.n_layer", "model.n_head", "model.n_embd", "model.n_ctx", "model.n_vocab",
    "model.norm", "model.final_norm", "model.scale_residual_init", "model.qkv_bias",
    "model.bias", "model.tied_head", "model.activation", "model.n_special", "model.n_classes",
    "model.lora_rank", "model.lora_alpha", "model.lora_targets", "optim.name",
    "optim.moments_dtype", "optim.ema_decay", "optim.trainable", "optim.trainable_layers",
    "train.context", "train.seed", "train.init_from", "data.document_mask",
    "data.test_fraction", "data.split_seed", "classify.form", "classify.read",
    "classify.lm_weight", "classify.balance", "classify.labels", "classify.rarer",
    "instruct.template", "instruct.loss_on", "instruct.lengths",
)  # fmt: skip
"""Fields of the parameters, of the optimizer's state, and of what the data are."""
_BATCH = ("train.batch_tokens", "train.batch_rows")
_WHY_BATCH = (
    "The batch of a fine-tuning cannot change: its length and its validations are counted in "
    "epochs, whose last batch is filled up"
)


class Change(NamedTuple):
    """A setting that differs from the last start's, and its class: free, announced or refused."""

    name: str
    old: Any
    new: Any
    kind: str


def changes_between(old: dict[str, Any], new: dict[str, Any]) -> list[Change]:
    """Every field of `new`, by its dotted name, that has another value in `old`; worst first."""
    found = [Change(k, old[k], v, _kind_of(k, new)) for k, v in new.items() if old[k] != v]
    order = ["refused", "announced", "free"]
    return sorted(found, key=lambda change: order.index(change.kind))


def _kind_of(name: str, values: dict[str, Any]) -> str:
    if name in REFUSED or (name in _BATCH and values["task"] in (CLASSIFY, INSTRUCT)):
        return "refused"
    return "announced" if name in ANNOUNCED else "free"


def in_columns(changes: Sequence[Change]) -> str:
    """The changes as indented lines, class by class: name, old and new value, aligned."""
    cells, before = [], ""
    for name, old, new, kind in changes:
        cells.append(("" if kind == before else kind, name, repr(old), f"-> {new!r}"))
        before = kind
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells
    ]
    return "".join(f"\n  {line}" for line in lines)


def refusal(path: Path, changes: Sequence[Change]) -> UserError:
    """The error for a start whose settings would make another run of the one in `path`."""
    refused = [change for change in changes if change.kind == "refused"]
    flags = " ".join(f"{flag_of(c.name)} {as_words(c.old)}".rstrip() for c in refused)
    why = f"\n{_WHY_BATCH}." if any(c.name in _BATCH for c in refused) else ""
    return UserError(
        f"{path} holds a run with other settings:{in_columns(changes)}{why}\nTo go on with it, "
        f"keep its values:\n  {flags}\nTo start over instead: --fresh, which keeps the old run "
        "beside the new, or another --run-dir"
    )
