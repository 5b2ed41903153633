"""The origin of a field's value: typed, from the config file, or a default.

A message about a value that was not typed names its origin, and the flag that changes it. The shape
of a run that starts from a model comes with that model.
"""

import dataclasses
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from gptjax.base.errors import UserError
from gptjax.config.schema import Config, ModelConfig

# Settings of training, which a preset keeps when the rest of its model comes from elsewhere.
_KEPT = (
    *("embd_pdrop", "attn_pdrop", "resid_pdrop", "dtype", "float32_matmul", "attention"),
    *("remat", "unroll", "n_special", "n_classes", "clf_pdrop"),
    *("lora_rank", "lora_alpha", "lora_dropout", "lora_targets"),
)
SHAPE = tuple(f.name for f in dataclasses.fields(ModelConfig) if f.name not in _KEPT)
"""Fields of the model that come with its parameters: its shape, and the switches of its layers."""
_FIELD = re.compile(
    r"(?<![\w.-])(?:model|data|optim|train|mesh|sample|classify|instruct)\.[a-z]\w*"
)


def value_of(config: Config, name: str) -> Any:
    """The value of a field under its dotted name; raises `AttributeError` if there is none."""
    section, field = name.split(".")
    return getattr(getattr(config, section), field)


def flag_of(name: str) -> str:
    """The flag of a field: of a config, under its dotted name, or of a verb."""
    return f"--{name.replace('_', '-')}"


def comes_with_model(name: str) -> bool:
    """Whether a field, by its dotted name, has the value of the model that a run starts from.

    >>> comes_with_model("model.n_layer"), comes_with_model("model.dtype")
    (True, False)
    """
    return name == "data.tokenizer" or name in {f"model.{field}" for field in SHAPE}


def as_words(value: Any) -> str:
    """A value as the command line takes it."""
    return shlex.join(map(str, value)) if isinstance(value, tuple) else shlex.quote(str(value))


@dataclass(frozen=True)
class Origins:
    """A config, the dotted names of the fields that were typed, and the config file, if any."""

    config: Config
    typed: frozenset[str]
    preset: str | None

    def explain(self, message: str) -> str:
        """Add to the message the origin of every value in it that was not typed.

        A default of None needs no explanation: it means that there is no value.
        """
        default, found = Config(), {}
        for name in dict.fromkeys(_FIELD.findall(message)):
            section, _, field = name.partition(".")
            if name in self.typed or not hasattr(getattr(default, section, None), field or " "):
                continue
            value, source = value_of(self.config, name), self.config.train.init_from
            if source is not None and comes_with_model(name):
                origin = f"from --train.init-from {shlex.quote(source)}"
            elif value != value_of(default, name) and self.preset is not None:
                origin = f"from --config {shlex.quote(self.preset)}"
            elif value is None or value == ():
                continue
            else:
                origin = "by default"
            found.setdefault(origin, []).append(f"{flag_of(name)} {as_words(value)}")
        if not found:
            return message
        words = "; ".join(f"{', '.join(flags)} {origin}" for origin, flags in found.items())
        return f"{message} ({words})"

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Explain the `UserError` that a block raises."""
        try:
            yield
        except UserError as error:
            error.args = (self.explain(str(error)),)
            raise
