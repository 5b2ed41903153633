"""How often a loop of an optimised program runs.

XLA notes the number where it knows it, but loses some notes when it doubles loops (level O1). Then
the number follows from the counter of the loop: where it begins, its step, and the bound of the
condition. All three are sums of constants, perhaps within small fusions.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from gptjax.planning.instructions import Instruction, root_of

TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
COUNTER = r'"known_induction_variable":\{"tuple_index":"(\d+)"\}'
SAME = {"copy", "bitcast", "convert", "reshape"}

Computations = Mapping[str, Sequence[Instruction]]


class _Count(NamedTuple):
    """A constant, added to the counter of the loop `counters` times."""

    counters: int
    constant: int


def loop_trips(loop: Instruction, within: str, computations: Computations) -> int:
    """Trips of a `while` in the computation `within`; 1 if nothing tells their number."""
    if noted := TRIPS.search(loop.line):
        return int(noted[1])
    place = loop.attribute(COUNTER)
    body, condition = loop.called("body"), loop.called("condition")
    if place is None or body is None or condition is None:
        return 1
    found = _Counter(computations, int(place))
    start = found.element(within, loop.operands[0])
    step = found.element(body, root_of(computations[body]).name)
    bound = found.bound(condition)
    if start is None or step is None or bound is None or start.counters or step.counters != 1:
        return 1
    return max(1, -(-(bound - start.constant) // step.constant)) if step.constant > 0 else 1


class _Counter:
    """Follows values back to constants and to the counter, which is one element of a tuple."""

    def __init__(self, computations: Computations, place: int):
        self._computations, self._place = computations, place

    def element(self, within: str, name: str) -> _Count | None:
        """The counter's element of a tuple, which may be the result of a fusion or a copy."""
        item = self._find(within, name)
        if item is None or item.opcode != "tuple":
            return None
        return self._value(within, item.operands[self._place], ())

    def bound(self, condition: str) -> int | None:
        """The number that the counter must stay below."""
        return self._bound(condition, ())

    def _bound(self, within: str, given: tuple[_Count | None, ...]) -> int | None:
        root = root_of(self._computations[within])
        if root.opcode == "fusion" and (callee := root.called("calls")) in self._computations:
            arguments = tuple(self._value(within, x, given) for x in root.operands)
            return self._bound(callee, arguments) if callee else None
        if root.opcode != "compare" or "direction=LT" not in root.line:
            return None
        left, right = (self._value(within, x, given) for x in root.operands)
        if left is None or right is None or left.counters != 1 or right.counters:
            return None
        return right.constant - left.constant

    def _value(self, within: str, name: str, given: tuple[_Count | None, ...]) -> _Count | None:
        """`given` are the arguments of a fusion; it is empty in the loop itself."""
        item = self._find(within, name)
        if item is None:
            return None
        number = item.attribute(r"(?:constant|parameter)\((-?\d+)\)")
        if item.opcode == "constant":
            return _Count(0, int(number)) if number else None
        if item.opcode == "parameter" and given:
            return given[int(number or 0)]
        if item.opcode == "get-tuple-element":
            return self._taken(within, item)
        if item.opcode in SAME:
            return self._value(within, item.operands[0], given)
        values = [self._value(within, operand, given) for operand in item.operands]
        if item.opcode == "add":
            left, right = values
            return left and right and _Count(*(a + b for a, b in zip(left, right, strict=True)))
        callee = item.called("calls") if item.opcode == "fusion" else None
        if callee in self._computations and callee:
            return self._value(callee, root_of(self._computations[callee]).name, tuple(values))
        return None

    def _taken(self, within: str, item: Instruction) -> _Count | None:
        """An element of the loop's own tuple is known if it is the counter."""
        source = self._find(within, item.operands[0])
        is_counter = int(item.attribute(r"index=(\d+)") or -1) == self._place
        is_own = source is not None and source.opcode == "parameter"
        return _Count(1, 0) if is_counter and is_own else None

    def _find(self, within: str, name: str) -> Instruction | None:
        return next((item for item in self._computations[within] if item.name == name), None)
