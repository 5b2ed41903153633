"""The traffic of a compiled program between devices, read from its text (HLO).

For every collective it gives the bytes, the axes of the mesh, the number of times in one call of
the program, and whether a condition guards it. Plans are compared with these figures.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from gptjax.planning.instructions import Instruction
from gptjax.planning.module import read_module
from gptjax.planning.trips import loop_trips

LISTED_GROUPS = re.compile(r"replica_groups=\{(\{[\d,{}]*\})\}")
IOTA_GROUPS = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
MESH_GROUPS = re.compile(
    r"replica_groups=mesh\[([^\]]*)\]"
    r"(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{((?:'\w+',? ?)+)\}"
)
PAIRS = re.compile(r"source_target_pairs=\{(\{[\d,{}]*\})\}")


class Collective(NamedTuple):
    """An operation that crosses the network."""

    kind: str
    elements: int
    bytes: int
    """Bytes of a device's part to be reduced, or of the gathered whole."""
    groups: tuple[tuple[int, ...], ...]
    """Devices that take part together; empty for all devices."""
    times: int
    """Number of times in one call of the program, if each condition is true once."""
    is_gated: bool
    is_looped: bool

    def axes(self, mesh: Mapping[str, int]) -> tuple[str, ...]:
        """The axes of the mesh along which the devices of a group differ."""
        return differing_axes(self.groups, mesh)


def differing_axes(groups: tuple[tuple[int, ...], ...], mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The axes of the mesh along which the devices of the first group differ."""
    if not groups:
        return tuple(name for name, size in mesh.items() if size > 1)
    places = np.unravel_index(groups[0], tuple(mesh.values()))
    return tuple(name for name, where in zip(mesh, places, strict=True) if len(set(where)) > 1)


def collectives(hlo: str) -> list[Collective]:
    """Every collective of a module, compiled or only lowered."""
    module = read_module(hlo)
    found = []

    def visit(name: str, times: int, is_gated: bool, is_looped: bool) -> None:
        for item in module.computations.get(name, ()):
            if (kind := item.collective) and not item.opcode.endswith("-done"):
                groups = replica_groups(item.line)
                size = payload(item, len(groups[0]) if groups else 1)
                found.append(Collective(kind, *size, groups, times, is_gated, is_looped))
            if body := item.called("body"):
                trips = loop_trips(item, name, module.computations)
                visit(body, times * trips, is_gated, True)
            for role in ("calls", "to_apply"):
                if callee := item.called(role):
                    visit(callee, times, is_gated, is_looped)
            for branch in item.branches():
                visit(branch, 1, True, is_looped)

    visit(module.entry, 1, False, False)
    return found


def payload(item: Instruction, devices: int) -> tuple[int, int]:
    """Elements and bytes: what a device has to be reduced, or the whole that is gathered.

    The result of a reduce-scatter over so many `devices` is one part of its operand.
    """
    arrays, parts = item.arrays, 1
    has_operands = item.opcode.endswith("-start") and len(arrays) > 1  # before the results
    if item.collective == "all-gather" and has_operands:
        arrays = arrays[len(arrays) // 2 :]
    elif item.collective == "reduce-scatter" and has_operands:
        arrays = arrays[: len(arrays) // 2]
    elif item.collective == "reduce-scatter":
        parts = devices
    return parts * sum(x.elements for x in arrays), parts * sum(x.bytes for x in arrays)


def bytes_by_axes(
    found: Iterable[Collective], mesh: Mapping[str, int]
) -> dict[tuple[tuple[str, ...], str], int]:
    """Bytes in one call by (axes, kind), of collectives of 64 or more elements that cross an axis.

    Scalars, such as the parts of a norm, are latency rather than traffic.
    """
    total: dict[tuple[tuple[str, ...], str], int] = defaultdict(int)
    for c in found:
        if (axes := c.axes(mesh)) and c.elements >= 64:
            total[axes, c.kind] += c.bytes * c.times
    return dict(total)


def replica_groups(line: str) -> tuple[tuple[int, ...], ...]:
    """The devices that an instruction connects, group by group; none if it connects all.

    Raises `ValueError` if their notation is unknown.
    """
    if listed := LISTED_GROUPS.search(line) or PAIRS.search(line):
        groups = re.findall(r"\{([\d,]+)\}", listed[1])
        return tuple(tuple(map(int, group.split(","))) for group in groups)
    if iota := IOTA_GROUPS.search(line):
        shape, dims, order = map(_numbers, iota.groups())
        return _rows(_ids(dims or [], order).reshape(shape or ()))
    if named := MESH_GROUPS.search(line):
        sizes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", named[1])}
        dims, order = map(_numbers, named.groups()[1:3])
        ids = _ids(dims or list(sizes.values()), order).reshape(tuple(sizes.values()))
        along = re.findall(r"'(\w+)'", named[4])
        others = [i for i, name in enumerate(sizes) if name not in along]
        ids = ids.transpose(*others, *(list(sizes).index(name) for name in along))
        return _rows(ids.reshape(-1, math.prod(sizes[name] for name in along)))
    if "replica_groups=" in line and "replica_groups={}" not in line:
        raise ValueError(f"not understood: {line[line.index('replica_groups=') :][:200]}")
    return ()


def _numbers(text: str | None) -> list[int] | None:
    return [int(n) for n in text.split(",")] if text else None


def _ids(dims: list[int], order: list[int] | None) -> np.ndarray:
    ids = np.arange(math.prod(dims)).reshape(dims)
    return ids if order is None else ids.transpose(order)  # transpose(None) would reverse


def _rows(ids: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(n) for n in row) for row in ids)
