"""Compares the plan with the memory and traffic of the compiled step; it alone imports jax.

The step is compiled for virtual devices of this machine's CPU and never run. A CPU computes
bfloat16 in float32 and has no cuDNN, so the config is planned again as it will be compiled:
float32, attention in tiles, layers in a loop, at most two micro-steps, and at most two groups
along `data`, which changes nothing on a device.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from gptjax.base.errors import UserError
from gptjax.base.terminal import gibibytes
from gptjax.cluster.environment import check_training, import_jax
from gptjax.config import Config
from gptjax.planning.counts import CPU
from gptjax.planning.hlo import bytes_by_axes, collectives
from gptjax.planning.layout import AXES, Layout
from gptjax.planning.memory import Memory, memory
from gptjax.planning.traffic import traffic

MOST_DEVICES = 64
FASTER = "--xla_backend_optimization_level=0"  # machine code that never runs need not be fast


@dataclass(frozen=True)
class Comparison:
    """Bytes on each device, planned and reported by XLA."""

    planned: Memory
    arguments: int
    temporaries: int
    sent: dict[tuple[str, str], tuple[int, int]]
    """Payload by (axis, kind), planned and in the program."""
    seconds: float
    """Time of compiling."""


def as_compiled(config: Config, layout: Layout) -> tuple[Config, Layout]:
    """The config and layout that stand for these on a CPU. Raises `UserError` if too large.

    The batch has one or two micro-steps.
    """
    small = replace(layout, data=min(2, layout.data))
    if small.gpus > MOST_DEVICES:
        raise UserError(
            f"--compile-for-cpu makes at most {MOST_DEVICES} virtual devices, and {small} is "
            f"{small.gpus}: try a smaller --mesh.fsdp, which is estimated in the same way"
        )
    context, micro_batch = config.context, int(config.train.micro_batch)
    flash = config.model.attention in ("cudnn", "pallas")
    attention = "blockwise" if flash else config.model.attention
    model = replace(config.model, dtype="float32", attention=attention, unroll=1)
    steps = min(2, config.batch_rows // (layout.groups * micro_batch))
    train = replace(
        config.train,
        batch_tokens=steps * small.groups * micro_batch * context,
        wire_dtype="float32",
        ramp_from_tokens=None,
        ramp_steps=0,
        updates_per_call=1,
    )
    return replace(config, model=model, train=train), small


def compare(config: Config, layout: Layout) -> Comparison:
    """Compile the result of `as_compiled`; call this before anything imports jax."""
    config, layout = as_compiled(config, layout)
    flags = f"{FASTER} --xla_force_host_platform_device_count={layout.gpus}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
    os.environ["JAX_PLATFORMS"] = "cpu"
    import_jax()
    check_training()
    began = time.perf_counter()
    compiled = compile_step(config, layout)
    found = compiled.memory_analysis()
    return Comparison(
        memory(config, layout, int(config.train.micro_batch), counts=CPU),
        found.argument_size_in_bytes,
        found.temp_size_in_bytes,
        compare_traffic(config, layout, compiled.as_text()),
        time.perf_counter() - began,
    )


def compare_traffic(
    config: Config, layout: Layout, hlo: str
) -> dict[tuple[str, str], tuple[int, int]]:
    """Payload by (axis, kind), planned and read from the text of the compiled program."""
    mesh = {axis: layout.size(axis) for axis in AXES}
    actual = {
        (" x ".join(axes), kind): n
        for (axes, kind), n in bytes_by_axes(collectives(hlo), mesh).items()
    }
    planned = {key: moved.payload for key, moved in traffic(config, layout).items()}
    keys = dict.fromkeys([*planned, *actual])
    return {key: (planned.get(key, 0), actual.get(key, 0)) for key in keys}


def compile_step(config: Config, layout: Layout) -> Any:
    """The compiled step, a `jax.stages.Compiled`, of a config that a CPU can compute."""
    from gptjax.cluster.mesh import batch_layout, make_mesh
    from gptjax.model.places import ModelSharding
    from gptjax.training.program import assemble

    mesh = make_mesh(layout.gpus, ModelSharding(layout.fsdp, layout.tensor))
    rows = batch_layout(config, layout.groups, int(config.train.micro_batch))
    return assemble(config, mesh).compile(rows)


def lines(found: Comparison, config: Config, layout: Layout) -> list[str]:
    """A comparison in words."""
    config, layout = as_compiled(config, layout)
    steps = config.batch_rows // (layout.groups * int(config.train.micro_batch))
    memory_found = {
        "arguments": (found.planned.arguments, found.arguments),
        "temporaries": (found.planned.temporaries, found.temporaries),
    }
    sent = {f"{axis} {kind}": sizes for (axis, kind), sizes in found.sent.items()}
    return [
        "",
        f"compiled in {found.seconds:.0f} s for {layout.gpus} virtual devices ({layout}): float32, "
        f"attention {config.model.attention}, layers in a loop, micro-steps {steps}",
        *(_line(name, sizes, gibibytes) for name, sizes in memory_found.items()),
        *(_line(name, sizes, _megabytes) for name, sizes in sent.items()),
    ]


def _line(name: str, sizes: tuple[int, int], readable: Callable[[float], str]) -> str:
    planned, actual = sizes
    error = f"{planned / actual - 1:+.2%}" if actual else "not in the program"
    return f"  {name:<22} planned {readable(planned)}, XLA {readable(actual)}: {error}"


def _megabytes(n: float) -> str:
    return f"{n / 1e6:,.2f} MB"
