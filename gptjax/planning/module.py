"""An optimised program as computations of instructions, and how often each of them runs."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from gptjax.planning.instructions import Instruction, read_instruction
from gptjax.planning.trips import loop_trips

HEADER = re.compile(r"^(ENTRY )?%?([\w.-]+) (?:\(.*)?\{$")


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
                    trips = loop_trips(item, name, self.computations)
                    visit(body, times * trips, times)
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
            if item.collective:
                return True
            roles = (item.called(role) for role in ("body", "to_apply", "calls"))
            inner = [*item.branches(), *(r for r in roles if r and item.opcode != "reduce")]
            if any(self._communicates(callee) for callee in inner):
                return True
        return False


def read_module(hlo: str) -> Module:
    """Parse the text of a program, compiled or only lowered."""
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
        elif (item := read_instruction(line)) is not None:
            found[name].append(item)
    return Module(entry, found)
