"""What bench/gpu.py measures first: steps, their floor and roofline, torch, start and decoding.

Nothing here needs Grain, Orbax or tyro.
"""

import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import trainer
from harness import Figures, Plan, Report, Skipped, Spread, Worker, column, compare, ratios
from shapes import TOY, Shape, gpt2, model_config

from gptjax.cluster.devices import peak_flops
from gptjax.model.size import flops_per_token, parameter_count

ROUNDS = 4
STEP_COLUMNS = (
    *("model", "tokens/s", "MFU", "floor over step", "roofline over step"),
    *("compile, s", "temporaries, MB", "attention"),
)


def whole(quick: bool, size: str = "124M") -> Shape:
    """A step as it is trained: unrolled at 124M, as in configs/ otherwise."""
    if quick:
        return replace(TOY, micro_steps=2, loss_chunk_tokens=32)
    changes: dict[str, dict[str, Any]] = {
        "124M": {"batch": 32, "micro_steps": 4},
        "355M": {"batch": 16, "micro_steps": 2, "unroll": 1},
        "774M": {"batch": 16, "micro_steps": 2, "unroll": 1, "remat": "dots"},
        "1558M": {"batch": 8, "micro_steps": 2, "unroll": 1, "remat": "dots"},
    }
    return gpt2(size, 1024, dtype="bfloat16", **changes[size])


def step(plan: Plan, size: str) -> None:
    """A model's step, its floor and its roofline; a model that does not fit leaves a note."""
    shape, steps = whole(plan.quick, size), 2 if plan.quick else 5
    hlo = plan.scratch / "step.hlo"
    ours = {"steps": steps, "warm": min(3, steps + 1), "hlo": str(hlo)}
    floor = {"repeats": 2 if plan.quick else 10}
    targets = {
        "step": ("step_side.train", {"shape": asdict(shape), **ours}),
        "floor": ("floor_side.step", {"shape": asdict(shape), **floor}),
        "memory": ("floor_side.bandwidth", {"megabytes": 4 if plan.quick else 1024}),
    }
    report = Report(f"gpu_{size}", f"A step of {shape}", STEP_COLUMNS)
    measured, facts = compare(targets, plan.rounds(ROUNDS), report, may_die=True)
    if "step" in measured:
        _step_row(report, size, shape, measured, facts, steps, hlo)
    report.publish(plan.out)
    if plan.out is not None and hlo.exists():
        shutil.copy(hlo, plan.out / f"gpu_{size}.hlo")


def _step_row(
    report: Report,
    size: str,
    shape: Shape,
    measured: Mapping[str, Sequence[Figures]],
    facts: Mapping[str, Mapping[str, Any]],
    steps: int,
    hlo: Path,
) -> None:
    account, seconds = facts["step"], [s / steps for s in column(measured["step"])]
    per_token = flops_per_token(model_config(shape), shape.n_ctx)
    rate, peak = [shape.tokens / s for s in seconds], peak_flops(account["device"], shape.dtype)
    mfu = Spread.of([r * per_token / peak for r in rate]) if peak else None
    figures: dict[str, Any] = {"seconds": seconds, "tokens_per_second": rate, "mfu": mfu}
    floor = bound = None
    if "floor" in measured:
        parts = {name: column(measured["floor"], name) for name in measured["floor"][0]}
        floor = ratios(parts["seconds"], seconds)
        figures["floor"] = parts
        products = [a + b for a, b in zip(parts["layers"], parts["head"], strict=True)]
        flops = facts["floor"]["flops"] / statistics.median(products)
        report.note(
            f"floor: products alone at {flops / 1e12:,.1f} TFLOP/s, attention "
            f"({facts['floor']['attention']}) {Spread.of(parts['attention']).median * 1e3:,.2f} ms"
        )
        if "memory" in measured:
            bandwidth = statistics.median(column(measured["memory"], "bandwidth"))
            report.note(f"a copy moves {bandwidth / 1e9:,.1f} GB/s")
            plain = peak_flops(account["device"], "float32") or flops
            least = roofline(hlo, bandwidth, {"float32": plain, shape.dtype: peak or flops})
            if least is None:
                report.skip("roofline", "this version cannot read the compiled program")
            else:
                bound = ratios([least] * len(seconds), seconds)
                figures["roofline_seconds"] = least
    report.rows.append(
        (
            f"{size}: {shape}",
            Spread.of(rate).text("{:,.0f}"),
            mfu.text("{:.1%}") if mfu else "-",
            *(ratio.text("{:.2f}") if ratio else "-" for ratio in (floor, bound)),
            f"{account['compile_seconds']:.1f}",
            f"{account['temp_bytes'] / 1e6:,.0f}",
            account["attention"],
        )
    )
    report.figures[size] = figures | {"shape": asdict(shape), **account}
    report.ratio[size] = {"floor over step": floor, "roofline over step": bound}


def roofline(hlo: Path, bandwidth: float, peaks: dict[str, float]) -> float | None:
    """Seconds that bound the compiled program at a measured bandwidth and the peaks by type."""
    try:
        from gptjax.planning.kernels import kernels
        from gptjax.planning.roofline import Card, roofline_seconds
    except ImportError:
        return None
    return roofline_seconds(kernels(hlo.read_text()), Card(bandwidth, peaks))


def beside_torch(plan: Plan) -> None:
    """The same step here and in torch.compile, in turns."""
    shape, steps = whole(plan.quick), 2 if plan.quick else 5
    known = {"shape": asdict(shape), "steps": steps}
    targets = {
        "gptjax": ("step_side.train", known),
        "torch.compile": ("torch_side.train_compiled", known),
    }
    columns = ("step", *targets, "over torch.compile")
    report = Report("gpu_torch", "A step here and in torch.compile: tokens/s", columns)
    measured, facts = compare(targets, plan.rounds(ROUNDS), report, may_die=True)
    if len(measured) < 2:
        raise Skipped("; ".join(report.notes))
    report.row(str(shape), measured, shape.tokens * steps, "{:,.0f}")
    seconds = {side: f["compile_seconds"] for side, f in facts.items()}
    report.note(f"to compile: {', '.join(f'{side} {s:.0f} s' for side, s in seconds.items())}")
    report.figures[str(shape)]["facts"] = facts
    report.publish(plan.out)


def startup(plan: Plan) -> None:
    """From the start of a process to the end of its first step: nothing compiled before, then all.

    It has made-up tokens; the start of the train command is measured by its own program.
    """
    report = Report(
        "gpu_startup",
        "From the start of a process to the end of its first step, seconds",
        ("step", "cold", "warm", "import jax and add"),
    )
    shape = whole(plan.quick)
    known = {"shape": asdict(shape), "cache": str(plan.scratch / "programs")}
    seconds: dict[str, float] = {}
    for kind in ("cold", "warm"):
        started = time.perf_counter()
        Worker("step_side.start", **known).close()
        seconds[kind] = time.perf_counter() - started
    seconds["floor"] = trainer.jax_alone()["seconds"]
    report.rows.append((str(shape), *(f"{s:.1f}" for s in seconds.values())))
    report.figures["124M"] = seconds
    report.publish(plan.out)


def decode(plan: Plan) -> None:
    """Greedy texts of the engine in bfloat16, beside reading every weight once a token."""
    columns = ("model", "tokens/s", "after the first token", "weights' bytes over a copy's")
    report = Report("gpu_decode", "Greedy texts of random parameters in bfloat16", columns)
    batches, prompt, new = ((1, 2), 4, 6) if plan.quick else ((1, 64), 128, 256)
    for batch in batches:
        shape = replace(TOY if plan.quick else gpt2("124M", 1024, batch), batch=batch)
        tokens = {"shape": asdict(shape), "prompt": prompt, "new_tokens": new, "dtype": "bfloat16"}
        targets = {
            "engine": ("generating.engine_side", tokens),
            "memory": ("floor_side.bandwidth", {"megabytes": 4 if plan.quick else 1024}),
        }
        measured, _ = compare(targets, plan.rounds(2), report)
        model, engine = model_config(shape), measured["engine"]
        weights = 2 * (parameter_count(model) - model.n_ctx * model.n_embd)
        limit = [batch * b / weights for b in column(measured["memory"], "bandwidth")]
        rate = [batch * new / s for s in column(engine)]
        later = column(engine, "decoding")
        shown = [Spread.of(values).text("{:,.0f}") for values in (rate, later)]
        of_limit = ratios(later, limit)
        name = f"{batch} texts, {prompt} + {new} tokens: {shape}"
        report.rows.append((name, *shown, of_limit.text("{:.2f}")))
        report.figures[name] = {"tokens_per_second": rate, "decoding": later, "limit": limit}
    report.publish(plan.out)
