"""Plan a run: `python -m gptjax.plan --config NAME --gpu h100 --gpus 8 --price 2.5`."""

from collections.abc import Sequence
from dataclasses import dataclass

from gptjax.base.errors import ConfigError
from gptjax.cli import ConfigCommand, main, parse_config
from gptjax.planning.absent import become_compiler
from gptjax.planning.advice import advise
from gptjax.planning.finetuning import without_data
from gptjax.planning.gpus import find_gpu
from gptjax.planning.layout import lay_out
from gptjax.planning.report import Report
from gptjax.planning.schedule import Links, on_other_numbers
from gptjax.planning.search import USABLE, for_gpu, make_plan
from gptjax.planning.targets import find_target


@dataclass(frozen=True)
class PlanCommand(ConfigCommand):
    """Compute memory, time, communication and price of a run without running it."""

    gpu: str = "h100"
    """Type of GPU: gtx1070ti, t4, v100, rtx3090, rtx4090, rtx5080, rtx5090, rtxpro6000, a10g, l4,
    l40s, a100-40, a100, h100, h200, b200, gb200 or b300."""
    gpus: int = 8
    """Total number of GPUs."""
    gpus_per_node: int = 8
    """GPUs in one machine. The bus connects them; the network connects machines."""
    price: float | None = None
    """Price of one GPU for one hour; None leaves the price out of the plan."""
    mfu: float | None = None
    """Model FLOPs utilisation: share of the GPU's peak that the model's arithmetic reaches (0 to
    1); None is a public figure for the GPU or its nearest relative."""
    bus: float | None = None
    """Bus bandwidth within a machine, GB/s in one direction; None is the usual one of the GPU."""
    network: float | None = None
    """Network bandwidth of each GPU, GB/s in one direction; None is the usual one of the GPU."""
    usable: float = USABLE
    """Share of a GPU's memory that a step may use (0 to 1)."""
    compile: bool = False
    """Compile the programs for this GPU, which need not be here (`make setup-compile`), and show
    their memory, kernels, roofline and communication."""
    compile_for_cpu: bool = False
    """Compile the step for virtual devices of the CPU and compare its memory with the plan's."""


def plan(argv: Sequence[str]) -> int:
    """Parse, plan, print."""
    command = parse_config(PlanCommand, argv, "python -m gptjax.plan")
    _check(command)
    gpu, wanted, per_node = (
        find_gpu(command.gpu),
        without_data(command.run),
        command.gpus_per_node,
    )
    bus, network = command.bus or gpu.bus / 1e9, command.network or gpu.network / 1e9
    target = find_target(gpu) if command.compile else None
    links = Links(1e9 * bus, 1e9 * network)
    mfu = command.mfu or gpu.mfu.share
    layout = lay_out(wanted, command.gpus, per_node)
    made = make_plan(for_gpu(wanted, gpu), layout, gpu, links, mfu, command.usable)

    report = Report(gpu, links, mfu, command.usable, command.price)
    report.heading(wanted, made)
    report.memory(made)
    report.step(made)
    report.scaling(on_other_numbers(made.config, layout, gpu, links, mfu))
    report.gpus(wanted, layout)
    advice = advise(made, gpu, links, mfu, command.usable, per_node)
    report.words(command.config, made, advice)
    if target is not None:
        become_compiler()
        from gptjax.planning.compiled_report import report_programs

        for line in report_programs(target, wanted, made, links):
            report.say(line)
    if command.compile_for_cpu:
        from gptjax.planning.compiled import compare, lines

        for line in lines(compare(made.config, layout), made.config, layout):
            report.say(line)
    return 0


def _check(command: PlanCommand) -> None:
    """Raise one `ConfigError` with every mistake in the flags of `plan` itself."""
    positive = {"price": command.price, "bus": command.bus, "network": command.network}
    shares = {"mfu": command.mfu, "usable": command.usable}
    problems = [
        f"--{name} must be above 0, not {value:g}"
        for name, value in positive.items()
        if value is not None and not 0 < value < float("inf")
    ]
    problems += [
        f"--{name} must be above 0 and at most 1, not {value:g}"
        for name, value in shares.items()
        if value is not None and not 0 < value <= 1
    ]
    if command.compile and command.compile_for_cpu:  # each starts jax with devices of its own
        problems.append("--compile and --compile-for-cpu exclude each other: give one of them")
    try:
        find_gpu(command.gpu)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)


if __name__ == "__main__":
    main(plan)
