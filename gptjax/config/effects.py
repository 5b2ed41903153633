"""Fields that other fields make ineffective; a note names those that were typed."""

from collections.abc import Collection
from typing import NamedTuple

from gptjax.config.courses import cooldown_steps, schedules
from gptjax.config.names import parse_change
from gptjax.config.origins import flag_of
from gptjax.config.schema import CLASSIFY, INSTRUCT, PRETRAIN, Config

PREPARING = (
    "data.source data.inputs data.val_fraction data.input_format data.text_field "
    "data.doc_separator data.hub"
)
SHARDS = (
    "data.path data.source data.inputs data.doc_separator data.hub data.mixture "
    "data.mixture_changes data.document_mask"
)
LABELS = "data.label_field data.pair_field data.choice_fields"
EXAMPLES = (
    "data.examples data.val_examples data.test_examples data.test_fraction data.split_seed "
    f"data.header {LABELS} train.best_by"
)
CLASSES = (
    f"{LABELS} model.clf_pdrop classify.form classify.read classify.lm_weight classify.balance "
    "classify.labels classify.rarer"
)
BY_DATA = "model.n_special model.n_classes classify.rarer"
FROZEN = (
    "model.lora_rank model.lora_alpha model.lora_dropout model.lora_targets optim.trainable "
    "optim.trainable_layers"
)
INSTRUCTIONS = "instruct.template instruct.loss_on instruct.lengths instruct.test_responses"
SAMPLING = (
    "sample.prompt sample.temperature sample.top_k sample.top_p sample.min_p "
    "sample.repetition_penalty sample.stop"
)


class Surroundings(NamedTuple):
    """Facts outside the config that decide whether a field has an effect."""

    is_prepared: bool
    """Whether the data was prepared before this start."""
    platform: str
    """jax's name of the platform, such as cpu or gpu."""
    devices: int
    """Devices of this process."""


def note_without_effect(c: Config, typed: Collection[str], here: Surroundings) -> list[str]:
    """One line with the flags of the typed fields that change nothing; empty without any."""
    d, o, t = c.data, c.optim, c.train
    is_pretraining, is_fine_tuning = c.task == PRETRAIN, c.task in (CLASSIFY, INSTRUCT)
    lengths = [end - begin for begin, end in schedules(o, t.max_steps)]
    is_flat = o.schedule == "wsd" and not any(cooldown_steps(o, n) for n in lengths)
    steps = [parse_change(change, len(c.data.mixture))[0] for change in c.data.mixture_changes]
    never_validates = t.eval_every_steps == 0 and t.eval_every_epochs is None
    on = f"there are {here.devices} devices" if here.platform == "cpu" else "it is for CPUs"
    table = [
        ("optim.beta1 optim.beta2 optim.eps", o.name == "adafactor", "optim.name is adafactor"),
        ("optim.eps", o.name == "lion", "optim.name is lion"),
        ("optim.muon_momentum", o.name != "muon", f"optim.name is {o.name}"),
        ("optim.cooldown_fraction", o.schedule != "wsd", f"optim.schedule is {o.schedule}"),
        ("optim.final_lr optim.decay_steps", is_flat, "wsd without a cooldown stays at the peak"),
        ("train.eval_tokens", never_validates, "train.eval_every_steps is 0"),
        (SAMPLING, t.sample_every_steps == 0, "train.sample_every_steps is 0"),
        (
            "sample.max_new_tokens",  # also of the responses at the end
            t.sample_every_steps == 0 and c.task != INSTRUCT,
            "train.sample_every_steps is 0",
        ),
        (
            "sample.top_k sample.top_p sample.min_p",
            c.sample.temperature == 0,
            "sample.temperature is 0",
        ),
        (
            "sample.temperature sample.top_p sample.min_p",
            c.sample.top_k == 1 and c.sample.temperature != 0,
            "sample.top_k is 1",
        ),
        (PREPARING, is_pretraining and here.is_prepared, "the data is prepared already"),
        (EXAMPLES, is_pretraining, "it is for fine-tuning"),
        (SHARDS, is_fine_tuning, "a fine-tuning reads data.examples"),
        (CLASSES, c.task in (PRETRAIN, INSTRUCT), f"it is for task {CLASSIFY}"),
        (BY_DATA, c.task == CLASSIFY, "the examples set it"),
        (FROZEN, t.init_from is None, "nothing is frozen without --train.init-from"),
        (INSTRUCTIONS, c.task in (PRETRAIN, CLASSIFY), f"it is for task {INSTRUCT}"),
        ("data.val_fraction", d.val_examples is not None, "data.val_examples is given"),
        ("data.test_fraction", d.test_examples is not None, "data.test_examples is given"),
        ("train.batch_tokens", t.batch_rows is not None, "train.batch_rows is given"),
        ("optim.warmup_steps", o.warmup_fraction is not None, "optim.warmup_fraction is given"),
        (
            "train.eval_every_steps train.save_every_steps",
            t.eval_every_epochs is not None,
            "train.eval_every_epochs is given",
        ),
        (
            "data.mixture_changes",
            bool(steps) and max(steps) >= t.max_steps,
            "the run ends before the last change",
        ),
        ("model.scale_residual_init", t.init_from is not None, "parameters come with a model"),
        ("train.cpu_devices", here.devices != t.cpu_devices or here.platform != "cpu", on),
        ("model.float32_matmul", c.model.dtype != "float32", f"model.dtype is {c.model.dtype}"),
        ("model.float32_matmul", here.platform == "cpu", "it is for GPUs"),
        ("train.deterministic", here.platform == "cpu", "a CPU computes the same bits anyway"),
    ]
    reasons: dict[str, str] = {}
    for names, applies, reason in table:
        for name in names.split() if applies else ():
            if name in typed:
                reasons.setdefault(flag_of(name), reason)
    listed = "; ".join(f"{flag} ({reason})" for flag, reason in reasons.items())
    return [f"note     no effect here: {listed}"] if listed else []
