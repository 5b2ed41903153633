"""A plan on the screen: tables, then a summary in words."""

from dataclasses import replace

from rich.console import Console
from rich.table import Table

from gptjax.base.terminal import gibibytes
from gptjax.cluster.devices import matmul_dtype, peak_flops
from gptjax.config import Config
from gptjax.config.schema import PRETRAIN
from gptjax.model.size import parameter_count
from gptjax.model.trainable import trained_count
from gptjax.planning.advice import Advice
from gptjax.planning.finetuning import chosen_for_training
from gptjax.planning.gpus import GPUS, Gpu
from gptjax.planning.layout import Layout
from gptjax.planning.schedule import Links, Scale
from gptjax.planning.search import Plan, for_gpu, largest_planned_micro_batch
from gptjax.planning.traffic import transfers

POLICIES = ("none", "dots", "block", "full")


class Report:
    """Prints the parts of one plan. `price` is per GPU and hour, in any currency."""

    def __init__(self, gpu: Gpu, links: Links, mfu: float, usable: float, price: float | None):
        self.gpu, self.links, self.mfu, self.usable, self.price = gpu, links, mfu, usable, price
        self._console = Console(highlight=False, markup=False, emoji=False)

    def say(self, text: str) -> None:
        """Print a line, however long."""
        self._console.print(text, soft_wrap=True)

    def heading(self, wanted: Config, plan: Plan) -> None:
        """Print the plan, and how it differs from the config as it was given."""
        config, layout, gpu = plan.config, plan.layout, self.gpu
        model, rows = config.model, plan.config.train.micro_batch
        steps = config.batch_rows // (layout.groups * int(rows))
        self.say(
            f"gpus     {layout.gpus} x {gpu.name} of {gibibytes(gpu.memory)}, {layout.nodes} "
            f"{_plural(layout.nodes, 'node')} of {min(layout.gpus, layout.gpus_per_node)}"
        )
        self.say(f"mesh     {layout}")
        self.say(
            f"model    {parameter_count(model):,} parameters: {model.n_layer} layers, "
            f"{model.n_head} heads, {model.n_embd} wide, context {config.context}"
        )
        chosen = chosen_for_training(config)
        if (own := trained_count(model, chosen)) < parameter_count(model):
            self.say(f"trained  {own:,} parameters; the others are frozen")
        if config.task != PRETRAIN:
            self.say(
                "data     as if every example filled the context, in a run of train.max_steps steps"
            )
        self.say(
            f"compute  {model.dtype}, attention {model.attention}, remat {model.remat}; "
            f"{plan.schedule.flops_per_token / 1e9:,.4g} GFLOP a token"
        )
        if model.dtype != wanted.model.dtype:
            other = peak_flops(gpu.kind, "float16") and "; --model.dtype float16 is faster"
            self.say(
                f"         ({gpu.name} does not multiply {wanted.model.dtype}: planned in "
                f"{model.dtype}{other or ''})"
            )
        self.say(
            f"batch    {config.train.batch_tokens:,} tokens = {steps} micro-"
            f"{_plural(steps, 'step')} x {layout.groups} {_plural(layout.groups, 'group')} x "
            f"{rows} {_plural(int(rows), 'sequence')} x {config.context}"
        )

    def memory(self, plan: Plan) -> None:
        """Bytes by part."""
        found = plan.memory
        unit, name = (2**30, "GiB") if found.total > 2**28 else (2**20, "MiB")
        table = self._table("bytes on each GPU", ("", name))
        for part, size in found.parts().items():
            if size:
                table.add_row(part, f"{size / unit:,.2f}")
        table.add_row(f"total (most in its {found.moment})", f"{found.total / unit:,.2f}")
        usable = self.usable * self.gpu.memory / unit
        table.add_row(f"usable ({self.usable:.0%} of the GPU's)", f"{usable:,.2f}")
        self._show(table)

    def step(self, plan: Plan) -> None:
        """The time of a step, by part."""
        times, layout = plan.schedule, plan.layout
        peak = (peak_flops(self.gpu.kind, matmul_dtype(plan.config.model)) or 0) / 1e12
        header = ("a step", "times", "payload", "sent", "GB/s", "seconds")
        table = self._table("", header)
        share = f"arithmetic: {self.mfu:.0%} of {peak:,.1f} TFLOP/s"
        table.add_row(share, "", "", "", "", _seconds(times.compute))
        for moved in transfers(plan.config, layout):
            rate = self.links.rate(layout, moved.axis)
            table.add_row(
                f"{moved.axis} {moved.kind}: {moved.what}",
                f"{moved.micro_steps or 1:,}",
                _bytes(moved.payload),
                _bytes(moved.sent),
                f"{rate / 1e9:,.1f}",
                _seconds(moved.sent / rate),
            )
        if plan.config.optim.name == "muon" and layout.fsdp * layout.tensor > 1:
            table.add_row("whole matrices for Muon: not counted, see --compile", *[""] * 5)
        blank = [""] * 4
        if times.sync:
            table.add_row("communication beside arithmetic", *blank, _seconds(times.hidden))
        table.add_row("communication, exposed", *blank, _seconds(times.exposed))
        self._show(table)
        self.say(
            f"efficiency {times.efficiency:.1%}, {times.worst_efficiency:.1%} if nothing "
            f"overlapped: the {times.limit} is the limit"
        )
        reached = self.gpu.mfu
        if self.mfu == reached.share:
            self.say(f"utilisation {self.mfu:.0%}: {reached.source}")
            if reached.relative:
                self.say(f"    (of its relative {reached.relative}: none is public for this GPU)")

    def scaling(self, scales: list[Scale]) -> None:
        """The run on more and on fewer GPUs, with the same batch."""
        money = ("money",) if self.price is not None else ()
        header = ("GPUs", "nodes", "tokens/s", "hours", *money, "sent", "efficiency", "limit")
        table = self._table("the same run on other numbers of GPUs", header)
        for scale in scales:
            times, gpus, nodes = scale.schedule, scale.layout.gpus, scale.layout.nodes
            if times is None:
                blank = [""] * (4 + len(money))
                table.add_row(f"{gpus:,}", f"{nodes:,}", *blank, "uneven rows")
                continue
            spent = (self.money(times.hours * gpus),) if money else ()
            table.add_row(
                *(f"{gpus:,}", f"{nodes:,}", f"{times.tokens_per_second:,.0f}"),
                *(_hours(times.hours), *spent, _bytes(times.sent)),
                *(f"{times.efficiency:.1%}", times.limit),
            )
        self._show(table)

    def gpus(self, wanted: Config, layout: Layout) -> None:
        """The largest micro-batch on every GPU, by remat policy."""
        title = "largest micro-batch in this mesh, by model.remat"
        table = self._table(title, ("GPU", "memory", "type", "attention", *POLICIES))
        for gpu in GPUS.values():
            config = for_gpu(wanted, gpu)
            limit = self.usable * gpu.memory
            found = [
                largest_planned_micro_batch(_remat(config, p), layout, limit) for p in POLICIES
            ]
            rows = [f"{n:,}" if n else "no" for n in found]
            model = config.model
            table.add_row(gpu.name, gibibytes(gpu.memory), model.dtype, model.attention, *rows)
        self._show(table)

    def words(self, name: str, plan: Plan, advice: Advice) -> None:
        """Whether the run fits, with hours and price; or a change with which it would fit."""
        gpus = f"{plan.layout.gpus} x {self.gpu.name}"
        self.say("")
        if plan.fits:
            self.say(
                f"{name} fits {gpus} with micro-batch {plan.config.train.micro_batch}: "
                f"{self.cost(plan)}."
            )
        else:
            self.say(
                f"{name} does not fit {gpus}: a GPU would need {gibibytes(plan.memory.total)} with "
                f"micro-batch {plan.config.train.micro_batch}, but only "
                f"{gibibytes(self.usable * self.gpu.memory)} is usable."
            )
        if advice.plan is not None:
            self.say(f"{advice.words}: {self.cost(advice.plan)}.")
        elif advice.words:
            self.say(f"{advice.words}.")

    def cost(self, plan: Plan) -> str:
        """Hours and price of a plan's run, in words."""
        times = plan.schedule
        days = f" ({times.hours / 24:,.1f} days)" if times.hours >= 48 else ""
        many = times.tokens >= 1e8
        tokens = f"{times.tokens / 1e9:,.1f}e9" if many else f"{times.tokens:,}"
        words = f"{tokens} tokens in {_hours(times.hours)} hours{days}"
        words += f" at {self.mfu:.0%} of the peak"
        if self.price is None:
            return words
        hours = times.hours * plan.layout.gpus
        return f"{words}, price {self.money(hours)} ({self.price:g} per GPU and hour)"

    def money(self, gpu_hours: float) -> str:
        """The price of `gpu_hours` hours of one GPU."""
        return f"{gpu_hours * (self.price or 0):,.0f}"

    def _table(self, title: str, header: tuple[str, ...]) -> Table:
        table = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
        for i, name in enumerate(header):
            table.add_column(name, justify="right" if i else "left", overflow="fold")
        return table

    def _show(self, table: Table) -> None:
        self._console.print()
        self._console.print(table)


def _remat(config: Config, policy: str) -> Config:
    return replace(config, model=replace(config.model, remat=policy))


def _plural(n: int, word: str) -> str:
    return word if n == 1 else f"{word}s"


def _hours(hours: float) -> str:
    return f"{hours:.2g}" if hours < 1 else f"{hours:,.1f}"


def _seconds(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds:.1e}"
    return f"{seconds:.4f}" if seconds < 10 else f"{seconds:,.1f}"


def _bytes(n: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.3g} {unit}" if n < 100 else f"{n:.0f} {unit}"
        n /= 1000
    return f"{n:,.1f} TB"
