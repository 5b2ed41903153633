"""The origin of a field's value: typed, from the config file, or a default.

A message about a value that was not typed names its origin, and the flag that changes it.
"""

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from gptjax.base.errors import UserError
from gptjax.config.schema import Config

_FIELD = re.compile(r"(?<![\w.-])(?:model|data|optim|train|mesh|sample)\.[a-z]\w*")


def value_of(config: Config, name: str) -> Any:
    """The value of a field under its dotted name; raises `AttributeError` if there is none."""
    section, field = name.split(".")
    return getattr(getattr(config, section), field)


def flag_of(name: str) -> str:
    """The flag of a field: of a config, under its dotted name, or of a verb."""
    return f"--{name.replace('_', '-')}"


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
            value = value_of(self.config, name)
            if value != value_of(default, name) and self.preset is not None:
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
