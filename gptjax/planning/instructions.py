"""The instructions of an optimised program, read from its text (HLO), and how often each runs."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

WIDTHS = {
    **{"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4},
    **{"f32": 4, "s64": 8, "u64": 8, "f64": 8, "f8e4m3fn": 1, "f8e5m2": 1},
}
HEADER = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
NAMED = re.compile(r"^\s*(ROOT )?%?([\w.-]+) = (.*)$")
OPCODE = re.compile(r"([\w-]+)\(")
ARRAY = re.compile(r"\b(\w+)\[([\d,]*)\]")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
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


@dataclass(frozen=True)
class Module:
    """The computations of a program by name, each a list of its instructions in order."""

    entry: str
    computations: dict[str, list[Instruction]]

    def runs(self) -> dict[str, float]:
        """How often every computation with kernels of its own runs in one call of the program.

        A loop whose trips are unknown counts once. Of a conditional within a loop, a branch that
        moves something between devices runs once for all trips of the loop, because that is what
        such branches are for, and the other branch in all other trips. Without such a branch the
        one with more instructions stands for all.
        """
        found: dict[str, float] = {}

        def visit(name: str, times: float, calls: float) -> None:
            """`calls` is how often the innermost loop around it begins."""
            found[name] = found.get(name, 0) + times
            for item in self.computations.get(name, ()):
                if item.opcode == "while" and (body := item.called("body")):
                    trips = TRIPS.search(item.line)
                    visit(body, times * (int(trips[1]) if trips else 1), times)
                elif item.opcode == "conditional":
                    for branch, share in self._shares(item.branches(), times, calls):
                        visit(branch, share, calls)
                elif item.opcode == "call" and (callee := item.called("to_apply")):
                    visit(callee, times, calls)

        visit(self.entry, 1, 1)
        return found

    def _shares(
        self, branches: list[str], times: float, calls: float
    ) -> Iterator[tuple[str, float]]:
        moving = [name for name in branches if self._communicates(name)]
        if not moving:
            yield max(branches, key=lambda name: len(self.computations.get(name, ()))), times
            return
        for name in branches:
            share = min(times, calls) if name in moving else times - min(times, calls)
            if share:
                yield name, share

    def _communicates(self, name: str) -> bool:
        for item in self.computations.get(name, ()):
            if COLLECTIVE.match(item.opcode):
                return True
            roles = (item.called(role) for role in ("body", "to_apply", "calls"))
            inner = [*item.branches(), *(r for r in roles if r and item.opcode != "reduce")]
            if any(self._communicates(callee) for callee in inner):
                return True
        return False


def read_module(hlo: str) -> Module:
    """Parse the text of a compiled program."""
    entry, name = "", None
    found: dict[str, list[Instruction]] = {}
    for line in hlo.splitlines():
        if name is None:
            if header := HEADER.match(line):
                name = header[2]
                found[name] = []
                entry = name if header[1] else entry
        elif line.startswith("}"):
            name = None
        elif (item := _instruction(line)) is not None:
            found[name].append(item)
    return Module(entry, found)


def _instruction(line: str) -> Instruction | None:
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
