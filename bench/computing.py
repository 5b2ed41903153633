"""Programs that measure computation: training, loss, attention, memory, decoding."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from harness import (
    Figures,
    Report,
    Skipped,
    Spread,
    Worker,
    column,
    compare,
    installed,
    ratios,
)
from shapes import SMALL, TOY, Shape, gpt2_124m, larger_gpt2

MB = 1e6


@dataclass(frozen=True)
class Plan:
    """How thorough to be, and where scratch files and figures go."""

    quick: bool
    scratch: Path
    out: Path | None
    threads: int

    def rounds(self, usual: int) -> int:
        """`usual`, or as few as have a median."""
        return 2 if self.quick else usual


Targets = dict[str, tuple[str, dict[str, Any]]]


def _side(target: str, shape: Shape, **arguments: Any) -> tuple[str, dict[str, Any]]:
    return target, {"shape": asdict(shape), **arguments}


def _train(shape: Shape, updates: int) -> tuple[str, dict[str, Any]]:
    return _side("side.train", shape, updates=updates, warm=min(3, updates + 1))


def throughput(plan: Plan, dtype: str) -> None:
    """Tokens per second of training, beside Hugging Face's GPT-2 and a plain torch module.

    In bfloat16 the torch sides use autocast.
    """
    cases: Sequence[tuple[str, Shape, int, int]] = [
        ("small", SMALL, 11, 50),
        ("gpt2_124m_T256", gpt2_124m(256, 4), 3, 1),
        ("gpt2_124m_T1024", gpt2_124m(1024, 2), 3, 1),
        ("gpt2_355m_T256", larger_gpt2("355M", 256, 1), 3, 1),
    ]
    if plan.quick:
        cases = [("toy", TOY, 2, 2)]
    report = Report(
        "train_throughput" if dtype == "float32" else f"train_{dtype}",
        f"Training in {dtype}: a whole update; tokens/s, median (lowest to highest)",
        ("shape", "gptjax", "Hugging Face", "plain torch", "over Hugging Face", "over plain"),
    )
    for name, shape, rounds, updates in cases:
        _throughput(report, name, replace(shape, dtype=dtype), plan.rounds(rounds), updates)
    report.publish(plan.out)


def _throughput(report: Report, name: str, shape: Shape, rounds: int, updates: int) -> None:
    targets: Targets = {"gptjax": _train(shape, updates)}
    if installed("torch") and installed("transformers"):
        warm = min(3, updates + 1)
        for model in ("hugging_face", "plain"):
            targets[model] = _side(
                "torch_side.train", shape, updates=updates, model=model, warm=warm
            )
    else:
        report.skip("torch", "torch and transformers are not installed")
    measured, facts = compare(targets, rounds)
    tokens = shape.tokens * updates
    rates = {side: [tokens / s for s in column(m)] for side, m in measured.items()}
    spreads = {side: Spread.of(values) for side, values in rates.items()}
    over = {side: ratios(rates["gptjax"], rates[side]) for side in targets if side != "gptjax"}
    key = f"{name}_{shape.dtype}"
    report.rows.append(
        (
            f"{name}: {shape}; {rounds} rounds of {updates}",
            *(
                spreads[side].text("{:,.0f}") if side in spreads else "-"
                for side in ("gptjax", "hugging_face", "plain")
            ),
            *(
                over[side].text("{:.2f}") if side in over else "-"
                for side in ("hugging_face", "plain")
            ),
        )
    )
    report.figures[key] = {"tokens_per_second": rates, "shape": asdict(shape), "facts": facts}
    report.ratio[key] = over


def _variants(
    report: Report, plan: Plan, variants: dict[str, Shape], base: str, rounds: int, updates: int
) -> None:
    """One row a variant of the same update: seconds, temporaries, FLOPs, each over the base's."""
    measured: dict[str, list[Figures]] = {}
    facts: dict[str, dict[str, Any]] = {}
    measured, facts = compare(
        {name: _train(shape, updates) for name, shape in variants.items()}, plan.rounds(rounds)
    )
    for name, shape in variants.items():
        seconds = [s / updates for s in column(measured[name])]
        over = ratios(column(measured[base]), column(measured[name]))
        account = facts[name]
        temp_over = account["temp_bytes"] / max(1, facts[base]["temp_bytes"])
        report.rows.append(
            (
                name,
                Spread.of([1000 * s for s in seconds]).text("{:,.1f}"),
                f"{account['temp_bytes'] / MB:,.1f}",
                f"{account['flops'] / 1e9:,.2f}",
                over.text("{:.2f}"),
                f"{temp_over:.2f}",
            )
        )
        report.figures[name] = {"seconds": seconds, "shape": asdict(shape), **account}
        report.ratio[name] = {"speed": over, "temp_bytes": temp_over}


VARIANT_COLUMNS = (
    "variant",
    "update, ms",
    "temporaries, MB",
    "GFLOP",
    "speed over the first",
    "temporaries over it",
)


def loss(plan: Plan) -> None:
    """The loss over all logits at once against chunks, for one layer under GPT-2's vocabulary."""
    shape = replace(gpt2_124m(256, 16), n_layer=1, loss_chunk_tokens=0)
    chunks = [512, 1024, 2048]
    if plan.quick:
        shape, chunks = replace(TOY, n_vocab=500, loss_chunk_tokens=0), [16]
    variants = {f"plain, {shape.batch * shape.n_ctx:,} tokens": shape}
    variants |= {f"chunks of {c}": replace(shape, loss_chunk_tokens=c) for c in chunks}
    report = Report("loss_variants", f"Loss: whole updates of {shape}", VARIANT_COLUMNS)
    _variants(report, plan, variants, next(iter(variants)), 5, 1)
    report.publish(plan.out)


def attention(plan: Plan) -> None:
    """All T x T weights at once (xla) against tiles of them (blockwise), by context."""
    report = Report(
        "attention_variants",
        "Attention: whole updates of a one-layer model, 12 heads, 768 wide, vocabulary 256",
        VARIANT_COLUMNS,
    )
    cases = [(256, 8), (1024, 2), (2048, 1)]
    for context, batch in [(32, 2)] if plan.quick else cases:
        shape = gpt2_124m(context, batch, n_layer=1, n_vocab=256)
        if plan.quick:
            shape = replace(TOY, n_ctx=context)
        names = {kind: f"{kind}, T={context}, B={batch}" for kind in ("xla", "blockwise")}
        variants = {name: replace(shape, attention=kind) for kind, name in names.items()}
        _variants(report, plan, variants, names["xla"], 5, 3)
    report.publish(plan.out)


def memory(plan: Plan) -> None:
    """Bytes of the gpt2_124m update by what is recomputed and how the loss is formed."""
    shape = gpt2_124m(1024, 4, dtype="bfloat16", unroll=1)
    if plan.quick:
        shape = replace(TOY, dtype="bfloat16", unroll=1)
    policies = ["none", "block"] if plan.quick else ["none", "dots", "block", "full"]
    report = Report(
        "memory",
        f"Memory of one update by the compiler's account, nothing run: {shape}",
        (
            "remat",
            "loss",
            "arguments, MB",
            "temporaries, MB",
            "GFLOP",
            "temporaries over the first",
        ),
    )
    first: float | None = None
    for policy in policies:
        for chunk in (0, TOY.n_ctx if plan.quick else 1024):
            variant = replace(shape, remat=policy, loss_chunk_tokens=chunk)
            worker = Worker("side.account", shape=asdict(variant))
            facts = worker.facts
            worker.close()
            first = first or facts["temp_bytes"]
            formed = f"chunks of {chunk}" if chunk else "plain"
            report.rows.append(
                (
                    policy,
                    formed,
                    f"{facts['argument_bytes'] / MB:,.0f}",
                    f"{facts['temp_bytes'] / MB:,.1f}",
                    f"{facts['flops'] / 1e9:,.2f}",
                    f"{facts['temp_bytes'] / first:.2f}",
                )
            )
            report.figures[f"{policy}, {formed}"] = facts
            report.ratio[f"{policy}, {formed}"] = facts["temp_bytes"] / first
    report.notes.append("FLOPs are those of matrix products, recomputation included")
    report.publish(plan.out)


def decode(plan: Plan) -> None:
    """Tokens per second of greedy sampling, beside Hugging Face's generate."""
    cases = [
        ("small", replace(SMALL, n_ctx=256), 16, 200),
        ("gpt2_124m", gpt2_124m(1024, 1), 16, 64),
    ]
    if plan.quick:
        cases = [("toy", TOY, 4, 6)]
    report = Report(
        "decode",
        "Decoding one sequence greedily, random parameters, float32: tokens/s",
        ("model", "gptjax", "HF with cache", "HF without", "over HF cached", "over HF uncached"),
    )
    for name, shape, prompt, new in cases:
        tokens = {"prompt": prompt, "new_tokens": new}
        targets: Targets = {"gptjax": _side("side.decode", shape, **tokens)}
        if installed("torch") and installed("transformers"):
            for side, cache in (("cached", True), ("uncached", False)):
                targets[side] = _side("torch_side.decode", shape, cache=cache, **tokens)
        else:
            report.skip("Hugging Face", "torch and transformers are not installed")
        try:
            measured, _ = compare(targets, plan.rounds(5))
        except Skipped as reason:
            report.skip(name, str(reason))
            continue
        rates = {side: [new / s for s in column(m)] for side, m in measured.items()}
        over = {s: ratios(rates["gptjax"], rates[s]) for s in rates if s != "gptjax"}
        report.rows.append(
            (
                f"{name}: {shape}; {prompt} + {new} tokens",
                *(
                    Spread.of(rates[s]).text("{:,.1f}") if s in rates else "-"
                    for s in ("gptjax", "cached", "uncached")
                ),
                *(over[s].text("{:.2f}") if s in over else "-" for s in ("cached", "uncached")),
            )
        )
        report.figures[name] = {"tokens_per_second": rates, "shape": asdict(shape), **tokens}
        report.ratio[name] = over
    report.publish(plan.out)
