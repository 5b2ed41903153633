"""Programs that measure computation: training, loss, attention, decoding."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import trainer
from harness import Plan, Report, Spread, column, compare, ratios
from shapes import SMALL, TOY, Shape, gpt2, model_config

from gptjax.cluster.devices import peak_flops
from gptjax.model.size import flops_per_token

VARIANT_COLUMNS = (
    *("variant", "step, ms", "tokens/s", "MFU", "temporaries, MB", "arguments, MB", "GFLOP"),
    *("compile, s", "speed over the first", "temporaries over it"),
)


def _side(target: str, shape: Shape, **arguments: Any) -> tuple[str, dict[str, Any]]:
    return target, {"shape": asdict(shape), **arguments}


def _train(shape: Shape, steps: int, target: str = "step_side.train", **more: Any):
    return _side(target, shape, steps=steps, warm=min(3, steps + 1), **more)


def throughput(plan: Plan, dtype: str) -> None:
    """Tokens per second of training, beside Hugging Face's GPT-2 and a plain torch module.

    In bfloat16 the torch sides use autocast. With `plan.against`, compare two checkouts instead.
    """
    if plan.against is not None:
        return trainer.checkouts(plan)
    cases = [
        ("small", SMALL, 11, 50),
        ("gpt2_124m_T256", gpt2("124M", 256, 4), 3, 1),
        ("gpt2_124m_T1024", gpt2("124M", 1024, 1), 3, 1),  # three sides of 2 need 25 GB
        ("gpt2_355m_T256", gpt2("355M", 256, 1), 3, 1),
    ]
    if plan.quick:
        cases = [("toy", TOY, 2, 2)]
    report = Report(
        "train_throughput" if dtype == "float32" else f"train_{dtype}",
        f"Training in {dtype}: a whole step; tokens/s, median (lowest to highest)",
        ("shape", "gptjax", "Hugging Face", "plain torch", "over Hugging Face", "over plain"),
    )
    for name, plain_shape, rounds, steps in cases:
        shape = replace(plain_shape, dtype=dtype)
        targets = {
            "gptjax": _train(shape, steps),
            "Hugging Face": _train(shape, steps, "torch_side.train", model="hugging_face"),
            "plain torch": _train(shape, steps, "torch_side.train", model="plain"),
        }
        label = f"{name}: {shape}; {plan.rounds(rounds)} rounds of {steps}"
        try:
            measured, facts = compare(targets, plan.rounds(rounds), report)
        except RuntimeError as error:  # memory was short, perhaps: the other cases are shown
            report.skip(label, str(error)[-300:])
            continue
        report.row(label, measured, shape.tokens * steps, "{:,.0f}")
        report.figures[label]["facts"] = facts
    report.publish(plan.out)


def variants(
    plan: Plan,
    report: Report,
    shapes: Mapping[str, Shape],
    rounds: int,
    steps: int = 1,
    together: bool = True,
) -> None:
    """One row for each variant of the same step; a variant that does not fit is left out.

    Unless `together`, each has the device to itself.
    """
    groups = [shapes] if together else [{name: shape} for name, shape in shapes.items()]
    measured, facts = {}, {}
    for group in groups:
        targets = {name: _train(shape, steps) for name, shape in group.items()}
        some = compare(targets, plan.rounds(rounds), report, may_die=True)
        measured, facts = measured | some[0], facts | some[1]
    for name in measured:
        _variant_row(report, shapes[name], name, column(measured[name]), facts, steps)


def _variant_row(
    report: Report,
    shape: Shape,
    name: str,
    values: list[float],
    facts: Mapping[str, Mapping[str, Any]],
    steps: int,
) -> None:
    account, seconds = facts[name], [s / steps for s in values]
    rate = shape.tokens / Spread.of(seconds).median
    peak = peak_flops(account["device"], shape.dtype)
    mfu = rate * flops_per_token(model_config(shape), shape.n_ctx) / peak if peak else None
    base = next(iter(report.figures.values()), {"seconds": seconds, **account})
    speed = ratios(base["seconds"], seconds)
    temp_over = account["temp_bytes"] / max(1, base["temp_bytes"])
    report.rows.append(
        (
            name,
            Spread.of([1000 * s for s in seconds]).text("{:,.1f}"),
            f"{rate:,.0f}",
            f"{mfu:.1%}" if mfu else "-",
            *(f"{account[kind] / 1e6:,.1f}" for kind in ("temp_bytes", "argument_bytes")),
            f"{account['flops'] / 1e9:,.2f}",
            f"{account['compile_seconds']:.1f}",
            speed.text("{:.2f}"),
            f"{temp_over:.2f}",
        )
    )
    report.figures[name] = {"seconds": seconds, "tokens_per_second": rate, "mfu": mfu}
    report.figures[name] |= {"shape": asdict(shape), **account}
    report.ratio[name] = {"speed": speed, "temp_bytes": temp_over}


def loss(plan: Plan) -> None:
    """The loss over all logits at once and in chunks, for one layer with GPT-2's vocabulary."""
    shape = replace(gpt2("124M", 256, 16), n_layer=1, loss_chunk_tokens=0)
    chunks = [512, 1024, 2048]
    if plan.quick:
        shape, chunks = replace(TOY, n_vocab=500, loss_chunk_tokens=0), [16]
    report = Report("loss_variants", f"Loss: whole steps of {shape}", VARIANT_COLUMNS)
    variants(plan, report, in_chunks(shape, chunks), 5)
    report.publish(plan.out)


def in_chunks(shape: Shape, chunks: list[int]) -> dict[str, Shape]:
    """The shape with all logits at once, then with each length of chunks."""
    named = {f"chunks of {c}": replace(shape, loss_chunk_tokens=c) for c in chunks}
    return {"plain": replace(shape, loss_chunk_tokens=0), **named}


def attention(plan: Plan) -> None:
    """All T x T weights at once (xla) and in tiles (blockwise), by context."""
    shapes = {c: gpt2("124M", c, 2048 // c, n_layer=1, n_vocab=256) for c in (256, 1024, 2048)}
    for context, shape in ({TOY.n_ctx: TOY} if plan.quick else shapes).items():
        report = Report(
            f"attention_{context}", f"Attention: whole steps of {shape}", VARIANT_COLUMNS
        )
        kinds = {kind: replace(shape, attention=kind) for kind in ("xla", "blockwise")}
        variants(plan, report, kinds, 5, steps=3)
        report.publish(plan.out)
