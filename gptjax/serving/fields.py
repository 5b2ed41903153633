"""The fields of a JSON body, read one by one and checked as they are read."""

import json
from collections.abc import Mapping
from typing import Any

from gptjax.base.errors import did_you_mean
from gptjax.serving.refusals import invalid


class Fields:
    """The fields of a body, each taken once; what is left over is not known.

    Every method raises `Refusal` for a value that it does not allow.
    """

    def __init__(self, body: Mapping[str, Any]):
        self._body, self._known = body, list[str]()

    def take(self, name: str) -> Any:
        """The value of a field, None if it is absent."""
        self._known.append(name)
        return self._body.get(name)

    def integer(self, name: str, default: int, least: int, most: int | None) -> int:
        """A whole number; None for `most` is no limit, and larger than 2^31 counts as 2^31 - 1."""
        value = self.take(name)
        if value is None:
            return default
        bounds = f"at least {least}" if most is None else f"from {least} to {most}"
        if type(value) is not int or value < least or (most is not None and value > most):
            raise invalid(name, f"{name} must be a whole number {bounds}, not {shown(value)}")
        return min(value, 2**31 - 1)

    def number(
        self, name: str, default: float, least: float, most: float, is_open: str = ""
    ) -> float:
        """A number; `is_open` is the end, left or right, that is not allowed."""
        value = self.take(name)
        if value is None:
            return default
        inside = type(value) in (int, float) and least <= value <= most
        if not inside or value == {"left": least, "right": most}.get(is_open):
            ends = ("(" if is_open == "left" else "[", ")" if is_open == "right" else "]")
            expected = f"a number in {ends[0]}{least:g}, {most:g}{ends[1]}"
            raise invalid(name, f"{name} must be {expected}, not {shown(value)}")
        return float(value)

    def flag(self, name: str) -> bool:
        """True or false; absent is false."""
        value = self.take(name)
        if value not in (None, True, False) or type(value) in (int, float):
            raise invalid(name, f"{name} must be true or false, not {shown(value)}")
        return bool(value)

    def text(self, name: str) -> str | None:
        """A text, or None."""
        value = self.take(name)
        if value is not None and not isinstance(value, str):
            raise invalid(name, f"{name} must be a text, not {shown(value)}")
        return value

    def neutral(self, name: str, value: Any) -> None:
        """Refuse any value of a field that is not supported, but the one without effect."""
        given = self.take(name)
        if given is not None and (given != value or isinstance(given, bool)):
            allowed = f"may only be {json.dumps(value)}, which has no effect"
            raise invalid(name, f"{name} is not supported: it {allowed}", "unsupported")

    def refuse_others(self) -> None:
        """Refuse the fields that nobody took."""
        for name in self._body:
            if name not in self._known:
                near = did_you_mean(name, self._known)
                message = f"unrecognized request argument supplied: {shown(name)}{near}"
                raise invalid(name[:100], message, "unknown")


def shown(value: Any) -> str:
    """The beginning of a value as JSON, for a message; a prompt does not belong there."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, int) and abs(value) > 2**64:
        return "a huge number"
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:60] + "..."
