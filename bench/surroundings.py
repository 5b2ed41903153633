"""Programs that measure what surrounds the computation: data, tokenizer, checkpoints, start-up."""

from dataclasses import asdict
from functools import partial
from pathlib import Path

from computing import Plan
from harness import BENCH, ROOT, Report, Skipped, Spread, column, compare, in_turns, ratios
from shapes import TOY, gpt2_124m
from startup import cold_and_warm, floor

from gptjax.base.errors import UserError
from gptjax.config import DataConfig
from gptjax.preparation.pipeline import prepare_shards
from gptjax.preparation.sources import standard_library, text_files

# Configs that are started: tokenizer and flags. 2^19 tokens would take a processor an hour.
STARTS = {"quickstart": ("bytes", []), "gpt2_124m": ("gpt2", ["--train.batch-tokens", "1024"])}
TOY_START = {"tiny": ("bytes", [])}


def loader(plan: Plan) -> None:
    """Shuffled batches through Grain against nanoGPT's loop over one memory map."""
    inputs = tuple(map(str, sorted(BENCH.glob("*.py"))))
    data = DataConfig(
        path=str(plan.scratch / "loader"), tokenizer="bytes", inputs=inputs if plan.quick else ()
    )
    documents = text_files(inputs) if plan.quick else standard_library()
    # one shard, so that both sides read the same file
    manifest = prepare_shards(data, documents, shard_tokens=2**29 if not plan.quick else 2**20)
    report = Report(
        "loader",
        "Data: training batches of one thread, tokens/s",
        ("batch", "StepSource by Grain", "nanoGPT's loop", "ratio"),
    )
    cases = [(32, 4, 4)] if plan.quick else [(64, 12, 400), (1024, 16, 100), (1024, 64, 50)]
    for context, rows, steps in cases:
        arguments = {"data": str(manifest.directory), "context": context, "rows": rows}
        arguments["steps"] = steps
        measured, _ = compare(
            {"gptjax": ("side.load", arguments), "plain": ("plain_side.load", arguments)},
            plan.rounds(7),
        )
        tokens = context * rows * steps
        rates = {side: [tokens / s for s in column(m)] for side, m in measured.items()}
        over = ratios(rates["gptjax"], rates["plain"])
        name = f"T={context}, B={rows}"
        report.rows.append(
            (
                name,
                Spread.of(rates["gptjax"]).text("{:,.0f}"),
                Spread.of(rates["plain"]).text("{:,.0f}"),
                over.text("{:.2f}"),
            )
        )
        report.figures[name] = rates
        report.ratio[name] = over
    report.publish(plan.out)


def tokenizer(plan: Plan) -> None:
    """Text to gpt2 tokens: a pool of threads and the whole preparation, against tiktoken's own."""
    documents = (
        sorted((ROOT / "gptjax").rglob("*.py"))
        if plan.quick
        else [d.path for d in standard_library()]
    )
    texts = [str(p) for p in documents if _is_text(p)]
    size = sum(p.stat().st_size for p in documents if _is_text(p))
    report = Report(
        "tokenizer",
        f"gpt2 tokens of {len(texts):,} files, {size / 1e6:,.1f} MB, on {plan.threads} threads",
        ("side", "MB/s", "over tiktoken's batch"),
    )
    targets = {
        "tiktoken encode_ordinary_batch": ("plain_side.encode", {"texts": texts}),
        "gptjax encode": ("side.encode", {"texts": texts}),
        "gptjax prepare_shards, files to shards": (
            "side.prepare_texts",
            {"texts": texts, "directory": str(plan.scratch)},
        ),
    }
    if (measured := _compared(plan, report, targets, 5)) is None:
        return
    base = next(iter(targets))
    for side, rounds in measured.items():
        speeds = [size / 1e6 / s for s in column(rounds)]
        over = ratios(column(measured[base]), column(rounds))
        report.rows.append((side, Spread.of(speeds).text("{:,.2f}"), over.text("{:.2f}")))
        report.figures[side] = {"mb_per_second": speeds, "tokens": rounds[0]["tokens"]}
        report.ratio[side] = over
    report.publish(plan.out)


def large_text(plan: Plan) -> None:
    """One file of 2 GB to shards, and the memory that takes, against tiktoken on the same file."""
    size = 10**7 if plan.quick else 2 * 10**9
    text = plan.scratch / "text"
    raw = b"".join(d.path.read_bytes() for d in standard_library()[: 200 if plan.quick else None])
    with text.open("wb") as file:
        for number in range(-(-size // len(raw))):
            file.write(b"# copy %d\n" % number + raw[: size - file.tell()])
    size = text.stat().st_size
    report = Report(
        "large_text",
        f"gpt2 tokens of one file of {size / 1e6:,.1f} MB, on {plan.threads} cores",
        ("side", "MB/s", "over tiktoken's batch", "memory of all processes, MB"),
    )
    base, verb = "tiktoken encode_ordinary_batch", "gptjax prepare_shards, file to shards"
    targets = {
        base: ("plain_side.encode_file", {"path": str(text)}),
        verb: ("side.prepare_file", {"path": str(text), "directory": str(plan.scratch)}),
    }
    if (measured := _compared(plan, report, targets, 3)) is None:
        return
    for side, rounds in measured.items():
        speeds = [size / 1e6 / s for s in column(rounds)]
        over = ratios(column(measured[base]), column(rounds))
        memory = f"{max(column(rounds, 'memory')) / 1e6:,.0f}" if side == verb else ""
        report.rows.append((side, Spread.of(speeds).text("{:,.2f}"), over.text("{:.2f}"), memory))
        report.figures[side] = {name: column(rounds, name) for name in rounds[0]}
        report.ratio[side] = over
    report.notes.append("memory: the sum of every process's own peak, shared pages counted in each")
    report.publish(plan.out)


def _compared(
    plan: Plan, report: Report, targets: dict[str, tuple[str, dict]], rounds: int
) -> dict[str, list[dict]] | None:
    """The rounds of every side; None, and a report that says why, where one cannot run here."""
    try:
        return compare(targets, plan.rounds(rounds))[0]
    except Skipped as reason:
        report.skip("all", str(reason))
        report.publish(plan.out)
        return None


def _is_text(path) -> bool:
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    return True


def checkpoint(plan: Plan) -> None:
    """Seconds that a save holds up the loop, against writing the same bytes plainly."""
    shape = TOY if plan.quick else gpt2_124m(1024, 1)
    state = asdict(shape)
    scratch = {"directory": str(plan.scratch)}
    # parameters and two moments, float32: the plain side only has to write about as much
    padded = -(-shape.n_vocab // 128) * 128
    d = shape.n_embd
    size = 12 * (d * (padded + shape.n_ctx) + shape.n_layer * (12 * d * d + 13 * d) + 2 * d)
    measured, facts = compare(
        {
            "gptjax": ("side.save", {"shape": state, **scratch}),
            "plain": ("plain_side.write", {"size": size, **scratch}),
        },
        plan.rounds(5),
    )
    report = Report(
        "checkpoint",
        f"Checkpoint of {facts['gptjax']['bytes'] / 1e6:,.1f} MB: {shape}",
        ("side", "holds the loop, s", "until safe on disk, s"),
    )
    for side, rounds in measured.items():
        held = Spread.of(column(rounds))
        safe = Spread.of(column(rounds, "until_safe"))
        report.rows.append((side, held.text("{:.3f}"), safe.text("{:.3f}")))
        report.figures[side] = {name: column(rounds, name) for name in ("seconds", "until_safe")}
    plain = column(measured["plain"], "until_safe")
    stall = ratios(column(measured["gptjax"]), plain)
    safe = ratios(column(measured["gptjax"], "until_safe"), plain)
    report.ratio = {"stall": stall, "until_safe": safe}
    report.rows.append(("over plain write and fsync", stall.text("{:.2f}"), safe.text("{:.2f}")))
    report.figures["bytes"] = {"gptjax": facts["gptjax"]["bytes"], "plain": size}
    report.notes.append("safe: gptjax's is committed, and signed by checksum; plain is fsynced")
    report.publish(plan.out)


def start(plan: Plan) -> None:
    """From Enter to the first update, with no compiled programs at hand and with them."""
    report = Report(
        "startup",
        "Start of `python -m gptjax.train --config CONFIG`, seconds",
        (
            "config",
            "until the first update begins, cold",
            "warm",
            "warm / cold",
            "cold / floor",
            "until it is done, cold",
            "warm",
        ),
    )
    for config, (tokenizer_name, more) in (TOY_START if plan.quick else STARTS).items():
        data = DataConfig(
            path=str(plan.scratch / config),
            tokenizer=tokenizer_name,
            inputs=tuple(map(str, sorted(BENCH.glob("*.py")))),
            val_fraction=0.2,
        )
        try:
            prepare_shards(data, text_files(data.inputs))
        except UserError as error:
            report.skip(config, str(error))
            continue
        arguments = ["--config", config, "--data.path", data.path, *more]
        arguments += ["--data.tokenizer", tokenizer_name]
        starts = partial(_cold_and_warm_seconds, arguments, plan.scratch)
        measured = in_turns({"gptjax": starts, "floor": floor}, plan.rounds(3))
        seconds = {kind: column(measured["gptjax"], kind) for kind in measured["gptjax"][0]}
        floors = column(measured["floor"])
        share = ratios(seconds["reached, warm"], seconds["reached, cold"])
        over = ratios(seconds["reached, cold"], floors)
        reached_cold, reached_warm, *done = [Spread.of(s).text("{:.2f}") for s in seconds.values()]
        shown = (share.text("{:.2f}"), over.text("{:.2f}"))
        report.rows.append((config, reached_cold, reached_warm, *shown, *done))
        report.figures[config] = {**seconds, "floor": floors}
        report.ratio[f"{config}, warm over cold"] = share
        report.ratio[f"{config}, cold over the floor"] = over
        chosen = " ".join(["--data.tokenizer", tokenizer_name, *more])
        report.notes.append(f"{config}: on prepared data, with {chosen}")
    report.notes.append("floor: a process that imports jax and adds two numbers")
    report.publish(plan.out)


def _cold_and_warm_seconds(arguments: list[str], scratch: Path) -> dict[str, float]:
    """Both starts, by `reached` and by `seconds` of `startup.first_update`."""
    starts = cold_and_warm(arguments, scratch)
    whens = ("reached", "seconds")
    return {f"{when}, {kind}": starts[kind][when] for when in whens for kind in starts}
