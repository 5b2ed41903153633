"""What a compiled schedule computes while data cross between devices.

XLA starts most collectives before their result is needed and ends them later. Between the two it
computes. With a time for every kernel, its roofline, and for every collective, its bytes at the
bandwidth of its axis, the schedule tells how long devices wait. The links carry one collective at a
time here, and computing does not slow them: a bound from the compiled program, no measurement.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from gptjax.planning.hlo import differing_axes, payload, replica_groups
from gptjax.planning.instructions import Instruction
from gptjax.planning.kernels import COLLECTIVES, Kernel
from gptjax.planning.layout import AXES, ROWS, Layout
from gptjax.planning.module import Module
from gptjax.planning.roofline import Card
from gptjax.planning.schedule import Links


@dataclass(frozen=True)
class Crossing:
    """A collective of the program, by all of its runs in one call."""

    kind: str
    axis: str
    """data, fsdp, tensor, or axes joined by ` x `."""
    payload: int
    """Bytes of an all-reduce's operand, an all-gather's result, a reduce-scatter's operand."""
    times: float
    seconds: float
    """Seconds on the links in one run."""
    exposed: float
    """Seconds of one run in which devices wait for it."""
    is_looped: bool
    """Whether it runs more than once in a call."""
    source: str


def crossings(
    module: Module, found: list[Kernel], card: Card, layout: Layout, links: Links
) -> list[Crossing]:
    """Every collective of a program, with the time that its schedule does not hide."""
    seconds = {
        (kernel.computation, kernel.name): card.seconds(kernel)
        for kernel in found
        if kernel.kind != COLLECTIVES
    }
    runs = module.runs()
    timeline = _Timeline(module, seconds, layout, links, runs)
    for name in runs:
        timeline.length(name)
    return timeline.found


class _Timeline:
    """The computations of a program, each walked once in its order."""

    def __init__(
        self,
        module: Module,
        seconds: Mapping[tuple[str, str], float],
        layout: Layout,
        links: Links,
        runs: Mapping[str, float],
    ):
        self._module, self._seconds, self._runs = module, seconds, runs
        self._layout, self._links = layout, links
        self._lengths: dict[str, float] = {}
        self.found: list[Crossing] = []

    def length(self, name: str) -> float:
        """Seconds of one run of a computation, waiting included."""
        if name not in self._lengths:
            self._lengths[name] = 0.0  # no computation calls itself
            self._lengths[name] = self._walk(name)
        return self._lengths[name]

    def _walk(self, name: str) -> float:
        now, links_free = 0.0, 0.0
        under_way: dict[str, tuple[Instruction, float, float]] = {}
        for item in self._module.computations.get(name, ()):
            moved = self._collective(item)
            if moved is not None and not item.opcode.endswith("-done"):
                own = self._bus_seconds(moved)
                links_free = max(now, links_free) + own
                if item.opcode.endswith("-start"):
                    under_way[item.name] = moved, own, links_free
                else:
                    self._note(name, moved, own, links_free - now)
                    now = links_free
            elif item.opcode.endswith("-done") and item.operands[0] in under_way:
                moved, own, end = under_way.pop(item.operands[0])
                self._note(name, moved, own, max(0.0, end - now), item)
                now = max(now, end)
            elif item.opcode == "while" and (body := item.called("body")):
                trips = self._runs.get(body, 0) / max(1, self._runs.get(name, 1))
                now += trips * self.length(body)
            elif item.opcode == "call" and (callee := item.called("to_apply")):
                now += self.length(callee)
            else:
                now += self._seconds.get((name, item.name), 0.0)
        return now

    def _collective(self, item: Instruction) -> Instruction | None:
        """The instruction that says what moves: the item itself, or the one that it wraps."""
        if item.collective:
            return item
        wrapped = item.called("calls") if item.opcode == "async-start" else None
        inside = self._module.computations.get(wrapped, []) if wrapped else []
        return next((x for x in inside if x.collective), None)

    def _devices(self, item: Instruction) -> int:
        groups = replica_groups(item.line)
        return len(groups[0]) if groups else self._layout.gpus

    def _bus_seconds(self, item: Instruction) -> float:
        """Seconds of a ring; axes that are no ring of the planner's have the slowest one's rate."""
        rounds = 2 if item.collective == "all-reduce" else 1
        devices, axis = self._devices(item), self._axis(item)
        sent = self._payload(item) * rounds * (devices - 1) / devices
        rings = [axis] if axis == ROWS else axis.split(" x ")
        return sent / min(self._links.rate(self._layout, ring) for ring in rings)

    def _payload(self, item: Instruction) -> int:
        return payload(item, self._devices(item))[1]

    def _axis(self, item: Instruction) -> str:
        mesh = {axis: self._layout.size(axis) for axis in AXES}
        return " x ".join(differing_axes(replica_groups(item.line), mesh)) or AXES[0]

    def _note(
        self,
        name: str,
        item: Instruction,
        seconds: float,
        exposed: float,
        done: Instruction | None = None,
    ) -> None:
        times = self._runs.get(name, 0)
        source = item.source or (done.source if done else "")
        self.found.append(
            Crossing(
                kind=item.collective or item.opcode,
                axis=self._axis(item),
                payload=self._payload(item),
                times=times,
                seconds=seconds,
                exposed=exposed,
                is_looped=times > 1,
                source=source,
            )
        )
