"""The compilation of a run's step, before its first one."""

import jax

from gptjax.cluster.compiler import watching_cache
from gptjax.cluster.phases import Phase, Phases
from gptjax.runs.display import Display
from gptjax.runs.trace import Startup
from gptjax.training.setup import Setup


def compile_missing(
    setup: Setup, step: int, display: Display, startup: Startup, phases: Phases
) -> None:
    """Compile what the steps from `step` on need, say so and time it, unless all of it is there."""
    if setup.has_compiled(step):
        return
    display.say("compiling the train step ...")
    startup.end("setup")
    compiling, asked = phases.during(Phase.COMPILING), jax.transfer_guard("allow")
    with compiling, watching_cache() as cache, asked:
        setup.compile_steps(step)
    startup.end("compilation", f"cached: {cache}")
