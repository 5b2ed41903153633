"""The sections of `gpu.py`, each run by `python bench/gpu_sections.py NAME OPTIONS_JSON` alone.

A section is a process of its own, so that one that runs out of memory, crashes or takes too long
costs only itself. It prints a table and writes NAME.json into the options' `out`.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from harness import BENCH, Report, Spread, plain_environment, ratios
from shapes import TOY, Shape, gpt2_124m, larger_gpt2, model_config
from startup import cold_and_warm

from gptjax.model.size import flops_per_token


@dataclass(frozen=True)
class Options:
    """Where things are, and whether sizes are toys."""

    out: Path
    work: Path
    dry: bool

    @property
    def data(self) -> Path:
        """The prepared text."""
        return self.work / "data"


def base(options: Options) -> Shape:
    """The update that every variant differs from in one thing."""
    if options.dry:
        return replace(TOY, micro_steps=2, loss_chunk_tokens=32)
    return gpt2_124m(1024, 32, micro_steps=2, dtype="bfloat16")


def small_variant(options: Options) -> Shape:
    """What variants start from: half the batch, for those that need more memory, and scanned.

    A scanned stack compiles in a fraction of the time, and every variant is compiled.
    """
    shape = base(options)
    return replace(shape, batch=max(1, shape.batch // 2), unroll=1)


def _updates(options: Options) -> int:
    return 2 if options.dry else 10


def _on_a_gpu() -> bool:
    import jax

    return jax.default_backend() == "gpu"


def floor(options: Options) -> None:
    """Matrix products and attention alone."""
    import jax
    from gpu_floor import floor as measure_floor
    from gpu_floor import peak_flops

    shape = base(options)
    figures = measure_floor(shape)
    report = Report(
        "gpu_floor",
        f"Floor on {jax.devices()[0].device_kind}: pieces of {shape}, forward and backward",
        ("piece", "ms", "times", "TFLOP/s", "of peak"),
    )
    peak = peak_flops()
    for name, piece in figures["pieces"].items():
        of_peak = f"{piece['tflops'] * 1e12 / peak:.0%}" if peak else "-"
        milliseconds, count = f"{piece['seconds'] * 1e3:.3f}", str(piece["count"])
        report.rows.append((name, milliseconds, count, f"{piece['tflops']:.1f}", of_peak))
    report.rows.append(("an update", f"{figures['seconds'] * 1e3:.2f}", "1", "-", "-"))
    report.figures = {**figures, "shape": asdict(shape), "peak_flops": peak}
    if not _on_a_gpu():
        report.skip("cudnn", "this is no GPU; attention is timed as XLA does it")
    report.publish(options.out)


def _compare(
    options: Options, name: str, title: str, variants: dict[str, Shape], floor: bool = False
) -> None:
    """Updates of variants in turns: time, tokens/s, MFU, memory; the first is the base."""
    import jax
    from gpu_floor import peak_flops
    from harness import in_turns
    from side import Update

    columns = (
        "variant",
        "update, ms",
        "tokens/s",
        "MFU",
        "temporaries, GB",
        "arguments, GB",
        "compile, s",
    )
    report = Report(
        name,
        f"{title}, on {jax.devices()[0].device_kind}",
        (*columns, "floor / update" if floor else "speed over the first"),
    )
    ready: dict[str, Update] = {}
    for label, shape in variants.items():
        try:
            update = Update(shape)
            update.run(2)
            ready[label] = update
        except Exception as error:
            report.skip(label, f"{type(error).__name__}: {str(error).strip()[:300]}")
    count, peak = _updates(options), peak_flops()
    sides = {n: (lambda u=u: {"seconds": u.run(count) / count}) for n, u in ready.items()}
    measured = in_turns(sides, 2 if options.dry else 4)
    seconds = {n: [r["seconds"] for r in rounds] for n, rounds in measured.items()}
    alone = _floor_seconds(options) if floor else None
    first = next(iter(ready), None)
    for label, values in seconds.items():
        shape, facts, spread = variants[label], ready[label].facts(), Spread.of(values)
        rate = shape.tokens / spread.median
        mfu = rate * flops_per_token(model_config(shape), shape.n_ctx) / peak if peak else None
        assert first is not None
        against = ratios(seconds[first], values).text("{:.2f}")
        if floor:
            against = f"{alone / spread.median:.2f}" if alone else "-"
        report.rows.append(
            (
                label,
                Spread.of([1000 * s for s in values]).text("{:,.2f}"),
                f"{rate:,.0f}",
                f"{mfu:.1%}" if mfu else "-",
                f"{facts['temp_bytes'] / 1e9:.2f}",
                f"{facts['argument_bytes'] / 1e9:.2f}",
                f"{facts['compile_seconds']:.1f}",
                against,
            )
        )
        report.figures[label] = {"seconds": values, "tokens_per_second": rate, "mfu": mfu}
        report.figures[label] |= {"shape": asdict(shape), **facts}
        report.ratio[label] = against
    report.publish(options.out)


def _floor_seconds(options: Options) -> float | None:
    path = options.out / "gpu_floor.json"
    return json.loads(path.read_text())["figures"]["seconds"] if path.exists() else None


def step(options: Options) -> None:
    """The update itself."""
    shape = base(options)
    _compare(options, "gpu_step", f"An update of {shape}", {"as trained": shape}, floor=True)


def attention(options: Options) -> None:
    """Flash attention against XLA's and ours in tiles."""
    shape, kinds = small_variant(options), ["cudnn", "xla", "blockwise"]
    if not _on_a_gpu():
        print("cudnn skipped: this is no GPU")
        kinds.remove("cudnn")
    variants = {kind: replace(shape, attention=kind) for kind in kinds}
    _compare(options, "gpu_attention", f"Attention, scanned, {shape}", variants)


def loss(options: Options) -> None:
    """Chunks of the loss against all logits at once."""
    shape = small_variant(options)
    chunks = [16] if options.dry else [2048, 8192]
    variants = {"plain": replace(shape, loss_chunk_tokens=0)}
    variants |= {f"chunks of {c}": replace(shape, loss_chunk_tokens=c) for c in chunks}
    _compare(options, "gpu_loss", f"Loss, scanned, {shape}", variants)


def unroll(options: Options) -> None:
    """The stack unrolled against scanned."""
    shape = base(options)
    variants = {"unrolled": shape, "scanned": replace(shape, unroll=1)}
    _compare(options, "gpu_unroll", f"Loop over layers, {shape}", variants)


def dropout(options: Options) -> None:
    """What dropout of 0.1 costs by random generator (attention weights by tiles, not by cudnn)."""
    shape = replace(small_variant(options), attention="blockwise")
    variants: dict[str, Shape] = {"no dropout": shape}
    for generator in ("threefry2x32", "philox2x32", "rbg", "unsafe_rbg"):
        variants[generator] = replace(shape, dropout=0.1, prng=generator)
    _compare(options, "gpu_dropout", f"Dropout, scanned, {shape}", variants)


def largest(options: Options) -> None:
    """Whether the larger GPT-2s fit, by account and by trying, and how fast they are; XL first."""
    shapes = {
        size: larger_gpt2(size, 1024, 8, dtype="bfloat16", remat="block", unroll=1)
        for size in ("1558M", "774M", "355M")
    }
    if options.dry:
        shapes = {"toy": replace(TOY, n_layer=3, remat="block", unroll=1)}
    _compare(options, "gpu_sizes", "The larger GPT-2s: T=1024, B=8, bfloat16, remat block", shapes)


def auto(options: Options) -> None:
    """The micro-batch that `auto` takes for gpt2_124m."""
    from gptjax.config.presets import load_config
    from gptjax.training.setup import Setup

    config = load_config("tiny" if options.dry else "gpt2_124m")
    config = replace(
        config,
        model=replace(config.model, n_vocab=None),
        data=replace(config.data, path=str(options.data), tokenizer=None),
        train=replace(config.train, micro_batch="auto", eval_every_steps=0),
    )
    layout = Setup(config).layout
    report = Report("gpu_auto", "train.micro_batch auto", ("config", "layout"))
    name = "tiny" if options.dry else "gpt2_124m"
    report.rows.append((name, str(layout)))
    report.figures = asdict(layout)
    report.publish(options.out)


def _train_arguments(options: Options) -> list[str]:
    config = "tiny" if options.dry else "gpt2_124m"
    manifest = json.loads((options.data / "manifest.json").read_text())
    return [
        *("--config", config, "--data.path", str(options.data)),
        *("--data.tokenizer", manifest["tokenizer"]),
        *("--model.n-vocab", str(manifest["n_vocab"])),
    ]


def start(options: Options) -> None:
    """Enter to the first update of the train verb, without compiled programs and with them."""
    kinds = cold_and_warm([*_train_arguments(options), *_batch(options)], options.work / "start")
    report = Report("gpu_startup", "Start, seconds", ("cache", "first update", "exit"))
    for kind, figures in kinds.items():
        first, end = (f"{figures[name]:.2f}" for name in ("seconds", "until_exit"))
        report.rows.append((kind, first, end))
    report.figures = dict(kinds)
    report.ratio = {"cold over warm": kinds["cold"]["seconds"] / kinds["warm"]["seconds"]}
    report.publish(options.out)


def _batch(options: Options) -> list[str]:
    return [] if options.dry else ["--train.batch-tokens", str(2**16), "--train.micro-batch", "32"]


def training(options: Options) -> None:
    """200 updates on real text, with their curve."""
    steps, warmup = (6, 2) if options.dry else (200, 40)
    run_dir = options.work / "run"
    command = [sys.executable, "-m", "gptjax.train", *_train_arguments(options), *_batch(options)]
    command += ["--run-dir", str(run_dir), "--train.max-steps", str(steps)]
    command += ["--train.eval-every-steps", str(steps // 2), "--train.eval-tokens", str(2**18)]
    command += ["--optim.warmup-steps", str(warmup), "--train.sample-every-steps", "0"]
    command += ["--train.save-every-steps", "0"]
    subprocess.run(command, env=plain_environment(), check=True)
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    for name in ("loss.png", "metrics.jsonl"):
        shutil.copy(run_dir / name, options.out / f"gpu_training_{name}")
    rates = sorted(rate for row in rows if (rate := row.get("tokens_per_second")))
    final = rows[-1]
    report = Report(
        "gpu_training",
        f"{steps} updates on real text",
        ("first loss", "last loss", "validation", "tokens/s, median"),
    )
    losses = [f"{v:.3f}" for v in (rows[0]["train_loss"], final["train_loss"], final["val_loss"])]
    report.rows.append((losses[0], losses[1], losses[2], f"{rates[len(rates) // 2]:,.0f}"))
    report.figures = {"rows": rows}
    report.publish(options.out)


SECTIONS: dict[str, Callable[[Options], Any]] = {
    "floor": floor,
    "step": step,
    "attention": attention,
    "loss": loss,
    "unroll": unroll,
    "training": training,
    "start": start,
    "largest": largest,
    "auto": auto,
    "dropout": dropout,
}


if __name__ == "__main__":
    name, chosen = sys.argv[1], json.loads(sys.argv[2])
    dry = ["--dry-run"] * chosen["dry"]
    sys.argv = [str(BENCH / "gpu.py"), *dry, "--only", name]  # what its user can repeat
    SECTIONS[name](Options(Path(chosen["out"]), Path(chosen["work"]), chosen["dry"]))
