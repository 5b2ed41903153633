"""The instructions of an optimised program, read from its text (HLO)."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

WIDTHS = {
    **{"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4},
    **{"f32": 4, "s64": 8, "u64": 8, "f64": 8, "f8e4m3fn": 1, "f8e5m2": 1},
}
NAMED = re.compile(r"^\s*(ROOT )?%?([\w.-]+) = (.*)$")
OPCODE = re.compile(r"([\w-]+)\(")
ARRAY = re.compile(r"\b(\w+)\[([\d,]*)\]")
COLLECTIVE = re.compile(
    r"(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast)"
    r"(-start|-done)?$"
)


class ArrayShape(NamedTuple):
    """One array of a shape, which may have several."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Bytes; 0 for what is no array, such as a token."""
        return WIDTHS.get(self.dtype, 0) * self.elements


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    shape: str
    """The result's, as XLA writes it."""
    opcode: str
    operands: tuple[str, ...]
    line: str
    is_root: bool

    @cached_property
    def arrays(self) -> tuple[ArrayShape, ...]:
        """The arrays of the result, in order."""
        return arrays_of(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes of the result."""
        return sum(array.bytes for array in self.arrays)

    @property
    def elements(self) -> int:
        """Elements of the largest array of the result."""
        return max((array.elements for array in self.arrays), default=0)

    @property
    def collective(self) -> str | None:
        """The kind of collective that it is, or that it starts or ends; None if it is none."""
        found = COLLECTIVE.match(self.opcode)
        return found[1] if found else None

    @property
    def source(self) -> str:
        """The operation of the traced function that it comes from."""
        return self.attribute(r'op_name="([^"]*)"') or ""

    def attribute(self, pattern: str) -> str | None:
        """The first group of a pattern in the line."""
        found = re.search(pattern, self.line)
        return found[1] if found else None

    def called(self, role: str) -> str | None:
        """The computation that it calls in a role: `calls`, `body`, `to_apply` or another."""
        return self.attribute(rf"\b{role}=%?([\w.-]+)")

    def branches(self) -> list[str]:
        """The computations of a conditional."""
        listed = self.attribute(r"\bbranch_computations=\{([^}]*)\}")
        if listed is not None:
            return re.findall(r"[\w.-]+", listed)
        return re.findall(r"\b(?:true|false)_computation=%?([\w.-]+)", self.line)


def arrays_of(shape: str) -> tuple[ArrayShape, ...]:
    """The arrays of a shape as XLA writes it.

    >>> arrays_of("(f32[2,3]{1,0}, s32[])")[0].bytes
    24
    """
    return tuple(
        ArrayShape(dtype, tuple(int(d) for d in dims.split(",") if d))
        for dtype, dims in ARRAY.findall(shape)
    )


def root_of(computation: Sequence[Instruction]) -> Instruction:
    """The instruction whose result is that of its computation."""
    return next((item for item in computation if item.is_root), computation[-1])


def read_instruction(line: str) -> Instruction | None:
    """Parse a line; None if it is no instruction."""
    named = NAMED.match(line)
    if named is None:
        return None
    root, name, rest = named.groups()
    cut = _closing(rest) if rest.startswith("(") else rest.find(" ")
    shape, rest = rest[:cut], rest[cut:].lstrip()
    opcode = OPCODE.match(rest)
    if opcode is None:
        return None
    arguments = rest[opcode.end() - 1 :]
    operands = re.findall(r"%([\w.-]+)", arguments[: _closing(arguments)])
    return Instruction(name, shape, opcode[1], tuple(operands), line.strip(), bool(root))


def _closing(text: str) -> int:
    """The place after the parenthesis that closes the first one."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return place + 1
    return len(text)
