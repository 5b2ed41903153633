"""Compiled programs on the screen: memory, kernels by class, their roofline, and what is wrong."""

from collections.abc import Iterator
from dataclasses import replace

import jax

from gptjax.base.terminal import gibibytes
from gptjax.cluster.devices import matmul_dtype
from gptjax.config import Config
from gptjax.planning.elsewhere import STEP, CompiledProgram, GpuCompiler
from gptjax.planning.findings import SOURCE, findings, large_copies
from gptjax.planning.finetuning import training_flops
from gptjax.planning.kernels import Kernel
from gptjax.planning.layout import Layout
from gptjax.planning.memory import Memory, memory
from gptjax.planning.overlap import Crossing, crossings
from gptjax.planning.roofline import by_class, card_of, roofline_seconds
from gptjax.planning.schedule import Links
from gptjax.planning.search import Plan
from gptjax.planning.targets import Target

SHOWN = 5  # of the largest copies and results
BOUNDS = "bounds from the compiled program, not measured times"


def report_programs(target: Target, wanted: Config, plan: Plan, links: Links) -> Iterator[str]:
    """Compile the programs of a plan and say what they are, each when it is compiled.

    If `wanted` leaves the micro-batch to `auto`, the compiler finds it, as in a run.
    """
    layout, config = plan.layout, plan.config
    report, compiler = CompiledReport(target, layout, links), GpuCompiler(target, layout)
    yield from report.heading(jax.__version__)
    if wanted.train.micro_batch == "auto":
        guess = int(config.train.micro_batch)
        rows = compiler.micro_batch(config, guess)
        config = replace(config, train=replace(config.train, micro_batch=rows))
        yield f"  {'micro-batch':<14} auto: {rows} by the compiler, {guess} by the planner"
    planned = memory(config, layout, int(config.train.micro_batch))
    yield from report.program(compiler.step(config), config, planned)
    yield from report.program(compiler.evaluation(config), config)
    yield from report.program(compiler.decoding(config), config)


class CompiledReport:
    """Words about programs for the GPUs of one layout."""

    def __init__(self, target: Target, layout: Layout, links: Links):
        self.target, self.layout, self.links = target, layout, links
        self._card = card_of(target)

    def heading(self, jax_version: str) -> Iterator[str]:
        """What was compiled, with which compiler and for which description."""
        gpus = f"{self.layout.gpus} x {self.target.gpu.name}"
        yield ""
        yield f"compiled for {gpus} by jax {jax_version}, without a GPU: {BOUNDS}"
        yield f"  {'target':<14} {self.target.source}"
        yield f"  {'products':<14} by cuBLAS; on the GPU XLA also tries kernels of its own"

    def program(
        self, program: CompiledProgram, config: Config, planned: Memory | None = None
    ) -> Iterator[str]:
        """One program; `planned` is the planner's memory for the train step."""
        card, found = self._card, program.kernels
        moved = crossings(program.module, found, card, self.layout, self.links)
        yield ""
        yield f"{program.name}, compiled in {program.seconds:.0f} s{self._approximately()}"
        yield from self._memory(program, planned)
        yield from self._classes(found)
        yield from self._crossings(moved)
        if program.name == STEP:
            yield from self._ceiling(found, moved, config)
        yield from _largest("large copies", large_copies(found))
        results = [kernel for kernel in found if not kernel.only_moves]
        yield from _largest("large results", sorted(results, key=lambda k: -k.written))
        steps = self._micro_steps(config) if program.name == STEP else 0
        for said in findings(found, moved, card, config, steps):
            yield f"  warning: {said}"

    def _memory(self, program: CompiledProgram, planned: Memory | None) -> Iterator[str]:
        words = (
            f"{gibibytes(program.needed)} a GPU (arguments {gibibytes(program.arguments)}, "
            f"temporaries {gibibytes(program.temporaries)})"
        )
        if planned is not None:
            error = planned.total / program.needed - 1
            words += f"; planned {gibibytes(planned.total)}: {error:+.1%}"
        yield f"  {'memory':<14} {words}"

    def _classes(self, found: list[Kernel]) -> Iterator[str]:
        shares, total = by_class(found, self._card), roofline_seconds(found, self._card)
        yield f"  {'kernels':<20} {'runs':>9} {'GB':>10} {'TFLOP':>9} {'least ms':>10}"
        for kind, share in shares.items():
            part = f"{1e3 * share.seconds:>10,.2f} {share.seconds / total:>6.1%}"
            yield (
                f"    {kind:<18} {share.launches:>9,.0f} {share.bytes / 1e9:>10,.2f} "
                f"{share.flops / 1e12:>9,.2f} {part if share.seconds else ''}"
            ).rstrip()
        runs, moved = (sum(getattr(s, n) for s in shares.values()) for n in ("launches", "bytes"))
        flops = sum(share.flops for share in shares.values()) / 1e12
        yield (
            f"    {'all':<18} {runs:>9,.0f} {moved / 1e9:>10,.2f} {flops:>9,.2f} "
            f"{1e3 * total:>10,.2f}"
        )

    def _crossings(self, moved: list[Crossing]) -> Iterator[str]:
        kinds = dict.fromkeys((c.axis, c.kind) for c in moved)
        for axis, kind in kinds if self.layout.gpus > 1 else ():
            own = [c for c in moved if (c.axis, c.kind) == (axis, kind)]
            payload = sum(c.payload * c.times for c in own)
            seconds = sum(c.seconds * c.times for c in own)
            exposed = sum(c.exposed * c.times for c in own)
            yield (
                f"  {axis + ' ' + kind:<26} {sum(c.times for c in own):,.0f} runs, "
                f"{payload / 1e6:,.2f} MB, {1e3 * seconds:,.2f} ms of the links, of which "
                f"{1e3 * exposed:,.2f} ms are not hidden behind kernels"
            )

    def _ceiling(self, found: list[Kernel], moved: list[Crossing], config: Config) -> Iterator[str]:
        peak = self._card.peak(matmul_dtype(config.model))
        exposed = sum(c.exposed * c.times for c in moved) if self.layout.gpus > 1 else 0.0
        seconds = roofline_seconds(found, self._card) + exposed
        tokens = config.batch_rows * config.context / self.layout.gpus
        mfu = tokens * training_flops(config) / (peak * seconds)
        per_token = sum(k.bytes * k.times for k in found) / tokens
        yield (
            f"  {'ceiling':<14} {1e3 * seconds:,.1f} ms a step at least: MFU at most {mfu:.1%}; "
            f"{per_token / 1e6:,.2f} MB of memory traffic a token{self._approximately()}"
        )

    def _micro_steps(self, config: Config) -> int:
        rows = self.layout.groups * int(config.train.micro_batch)
        return config.batch_rows // rows

    def _approximately(self) -> str:
        return ", approximate" if self.target.is_approximate else ""


def _largest(name: str, found: list[Kernel]) -> Iterator[str]:
    """The first kernels of different shape and source."""
    shown: dict[tuple[str, str], float] = {}
    for kernel in found:
        key = kernel.shape[:44], kernel.source[-SOURCE:]
        if key in shown or len(shown) < SHOWN:
            shown[key] = shown.get(key, 0) + kernel.times
    sizes = {(k.shape[:44], k.source[-SOURCE:]): k.written for k in found}
    for place, ((shape, source), times) in enumerate(shown.items()):
        size = f"{sizes[shape, source] / 2**20:>8,.1f} MiB x{times:,.0f}"
        yield f"  {name if place == 0 else '':<14} {size} {shape} {source}".rstrip()
