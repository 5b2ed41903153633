"""Advice about a plan: a faster mesh, or the smallest change that makes it fit."""

from dataclasses import dataclass, replace

from gptjax.config import Config
from gptjax.planning.gpus import Gpu
from gptjax.planning.schedule import Links
from gptjax.planning.search import ALIKE, Plan, best_plan

MOST_GPUS = 2**16


@dataclass(frozen=True)
class Advice:
    """A sentence without its full stop, and the plan that it leads to, if there is one."""

    words: str
    plan: Plan | None = None


def advise(plan: Plan, gpu: Gpu, links: Links, mfu: float, usable: float, per_node: int) -> Advice:
    """Compare with other meshes; if none fits, with more recomputation and more GPUs."""
    gpus, remat = plan.layout.gpus, plan.config.model.remat
    auto = replace(plan.config, train=replace(plan.config.train, micro_batch="auto"))

    def best(config: Config, gpus: int) -> Plan | None:
        return best_plan(config, gpus, per_node, gpu, links, mfu, usable)

    found = best(auto, gpus)
    if plan.fits:
        if found is None or found.layout == plan.layout:
            return Advice("No other mesh would be faster")
        if found.schedule.most_seconds * (1 + ALIKE) >= plan.schedule.most_seconds:
            return Advice("No other mesh would be faster by much")
        return Advice(f"Faster would be {flags(found)}", found)
    if found is not None:
        return Advice(f"It fits with {flags(found)}", found)
    for policy in ("dots", "block", "full"):
        if _recomputes_more(policy, remat):
            found = best(_with_remat(auto, policy), gpus)
            if found is not None:
                return Advice(f"It fits with --model.remat {policy} {flags(found)}", found)
    more = 2 * gpus
    while more <= MOST_GPUS:
        for policy in dict.fromkeys((remat, "full")):
            found = best(_with_remat(auto, policy), more)
            if found is not None:
                words = f"--gpus {more} --model.remat {policy} {flags(found)}"
                return Advice(f"No mesh of {gpus} fits; the smallest change is {words}", found)
        more *= 2
    return Advice(f"No number of {gpu.name} up to {MOST_GPUS:,} makes it fit")


def flags(plan: Plan) -> str:
    """The mesh of a plan as flags, and its micro-batch."""
    layout = plan.layout
    words = f"--mesh.fsdp {layout.fsdp} --mesh.tensor {layout.tensor}"
    return f"{words} (micro-batch {plan.config.train.micro_batch})"


def _with_remat(config: Config, policy: str) -> Config:
    return replace(config, model=replace(config.model, remat=policy))


def _recomputes_more(policy: str, than: str) -> bool:
    order = ("none", "dots", "block", "full")
    return order.index(policy) > order.index(than)
