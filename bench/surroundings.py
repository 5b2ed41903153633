"""Programs that measure the work around the computation: data, tokenizer, checkpoints."""

from dataclasses import asdict

from harness import BENCH, ROOT, Figures, Plan, Report, Spread, column, compare, cores, ratios
from shapes import TOY, gpt2, model_config

from gptjax.config import DataConfig
from gptjax.model.size import parameter_count
from gptjax.preparation.pipeline import prepare_shards
from gptjax.preparation.sources import standard_library, text_files

TIKTOKEN = "tiktoken encode_ordinary_batch"


def loader(plan: Plan) -> None:
    """Shuffled batches through Grain, and nanoGPT's loop over one memory map."""
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
        ("batch", "gptjax", "plain", "gptjax over plain"),
    )
    cases = [(32, 4, 4)] if plan.quick else [(64, 12, 400), (1024, 16, 100), (1024, 64, 50)]
    report.note("gptjax: StepSource by Grain; plain: nanoGPT's loop")
    for context, rows, steps in cases:
        arguments = {"data": str(manifest.directory), "context": context, "rows": rows}
        arguments["steps"] = steps
        targets = {"gptjax": ("side.load", arguments), "plain": ("plain_side.load", arguments)}
        measured, _ = compare(targets, plan.rounds(7), report)
        report.row(f"T={context}, B={rows}", measured, context * rows * steps, "{:,.0f}")
    report.publish(plan.out)


TEXT_COLUMNS = ("side", "MB/s", "over tiktoken's batch", "memory of all processes, MB")


def _text_rows(report: Report, measured: dict[str, list[Figures]], size: int) -> None:
    """One row for each side that turned `size` bytes into tokens."""
    for side, rounds in measured.items():
        speed = Spread.of([size / 1e6 / s for s in column(rounds)]).text("{:,.2f}")
        if TIKTOKEN in measured:
            report.ratio[side] = ratios(column(measured[TIKTOKEN]), column(rounds))
        over = report.ratio[side].text("{:.2f}") if side in report.ratio else "-"
        has_memory = "memory" in rounds[0]
        memory = f"{max(column(rounds, 'memory')) / 1e6:,.0f}" if has_memory else "-"
        report.rows.append((side, speed, over, memory))
        report.figures[side] = {name: column(rounds, name) for name in rounds[0]}


def tokenizer(plan: Plan) -> None:
    """Text to gpt2 tokens: a pool of threads, the whole preparation, and tiktoken's own call."""
    documents = (
        sorted((ROOT / "gptjax").rglob("*.py"))
        if plan.quick
        else [d.path for d in standard_library()]
    )
    texts = [str(p) for p in documents if _is_text(p)]
    size = sum(p.stat().st_size for p in documents if _is_text(p))
    report = Report(
        "tokenizer",
        f"gpt2 tokens of {len(texts):,} files, {size / 1e6:,.1f} MB, on {cores()} threads",
        TEXT_COLUMNS,
    )
    targets = {
        TIKTOKEN: ("plain_side.encode", {"texts": texts}),
        "gptjax encode": ("side.encode", {"texts": texts}),
        "gptjax prepare_shards, files to shards": (
            "side.prepare_texts",
            {"texts": texts, "directory": str(plan.scratch)},
        ),
    }
    _text_rows(report, compare(targets, plan.rounds(5), report)[0], size)
    report.publish(plan.out)


def large_text(plan: Plan) -> None:
    """One file of 2 GB to shards, with the memory used, and tiktoken on the same file."""
    size = 10**7 if plan.quick else 2 * 10**9
    text = plan.scratch / "text"
    raw = b"".join(d.path.read_bytes() for d in standard_library()[: 200 if plan.quick else None])
    with text.open("wb") as file:
        for number in range(-(-size // len(raw))):
            file.write(b"# copy %d\n" % number + raw[: size - file.tell()])
    size = text.stat().st_size
    report = Report(
        "large_text",
        f"gpt2 tokens of one file of {size / 1e6:,.1f} MB, on {cores()} cores",
        TEXT_COLUMNS,
    )
    prepared = {"path": str(text), "directory": str(plan.scratch)}
    targets = {
        TIKTOKEN: ("plain_side.encode_file", {"path": str(text)}),
        "gptjax prepare_shards, file to shards": ("side.prepare_file", prepared),
    }
    _text_rows(report, compare(targets, plan.rounds(3), report)[0], size)
    report.note("memory: the sum of every process's own peak, shared pages counted in each")
    report.publish(plan.out)


def _is_text(path) -> bool:
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    return True


def checkpoint(plan: Plan) -> None:
    """Seconds that a save delays the loop, and those of plainly writing as many bytes."""
    shape = TOY if plan.quick else gpt2("124M", 1024, 1)
    scratch = {"directory": str(plan.scratch)}
    # parameters and two moments, float32: the plain side needs to write only about as much
    size = 12 * parameter_count(model_config(shape))
    report = Report("checkpoint", "", ("side", "holds the loop, s", "until safe on disk, s"))
    targets = {
        "gptjax": ("side.save", {"shape": asdict(shape), **scratch}),
        "plain": ("plain_side.write", {"size": size, **scratch}),
    }
    measured, facts = compare(targets, plan.rounds(5), report)
    report.title = f"Checkpoint of {facts['gptjax']['bytes'] / 1e6:,.1f} MB: {shape}"
    for side, rounds in measured.items():
        figures = {name: column(rounds, name) for name in ("seconds", "until_safe")}
        spreads = [Spread.of(seconds).text("{:.3f}") for seconds in figures.values()]
        report.rows.append((side, *spreads))
        report.figures[side] = figures
    plain = report.figures["plain"]["until_safe"]
    over = {name: ratios(seconds, plain) for name, seconds in report.figures["gptjax"].items()}
    report.ratio["over plain write and fsync"] = over
    texts = [spread.text("{:.2f}") for spread in over.values()]
    report.rows.append(("over plain write and fsync", *texts))
    report.figures["bytes"] = {"gptjax": facts["gptjax"]["bytes"], "plain": size}
    report.note("safe: gptjax's is committed, and signed by checksum; plain is fsynced")
    report.publish(plan.out)


def saving(plan: Plan) -> None:
    """Steps while a checkpoint is written, over the steps before it, and what a save blocks."""
    shape = TOY if plan.quick else gpt2("124M", 1024, 1)
    scratch = {"directory": str(plan.scratch / "saving")}
    columns = ("side", "holds the loop, s", "a step alone, s", "a step meanwhile, s", "ratio")
    report = Report("saving", "", (*columns, "steps meanwhile"))
    targets = {"gptjax": ("saving_side.steps", {"shape": asdict(shape), "others": 3, **scratch})}
    measured, facts = compare(targets, plan.rounds(5), report)
    report.title = f"A step while {facts['gptjax']['bytes'] / 1e6:,.1f} MB are saved: {shape}"
    for side, rounds in measured.items():
        figures = {
            name: column(rounds, name) for name in ("seconds", "alone", "meanwhile", "steps")
        }
        over = ratios(figures["meanwhile"], figures["alone"])
        texts = [Spread.of(figures[n]).text("{:.3f}") for n in ("seconds", "alone", "meanwhile")]
        counts = Spread.of(figures["steps"]).text("{:.0f}")
        report.rows.append((side, *texts, over.text("{:.2f}"), counts))
        report.figures[side] = figures
        report.ratio["over the steps before"] = {side: over}
    report.note(
        "a ratio is the mean of the steps in which a save was written over the median before"
    )
    report.publish(plan.out)
