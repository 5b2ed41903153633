"""Small files of labelled texts, and the flags of a run on them that takes seconds."""

from pathlib import Path

WORDS = {
    "ham": ("see you at home", "call me later", "lunch at noon"),
    "spam": ("win a free prize", "urgent: claim cash", "text now to win"),
}


def write_messages(path: Path, count: int = 60) -> Path:
    """So many messages, a third of them spam, no two alike."""
    lines = []
    for n in range(count):
        label = "spam" if n % 3 == 0 else "ham"
        lines.append(f"{label}\t{WORDS[label][n % 7 % 3]} {n}{' ok' * (n % 9)}")
    path.write_text("\n".join(lines) + "\n")
    return path


def flags_of(examples: Path, run: Path, **fields: object) -> list[str]:
    """Three epochs of six steps at the size of the tiny config, with dropout."""
    values = {
        "config": "tiny", "task": "classify", "data.examples": examples, "run-dir": run,
        "data.val-fraction": 0.1, "data.test-fraction": 0.2, "data.tokenizer": "bytes",
        "model.n-ctx": 48, "model.unroll": 1, "model.resid-pdrop": 0.1, "model.clf-pdrop": 0.1,
        "train.batch-rows": 8, "train.micro-batch": 4, "train.epochs": 3,
        "train.eval-every-epochs": 1, "train.best-by": "accuracy", "optim.warmup-steps": 1,
        "optim.peak-lr": 3e-3,
    }  # fmt: skip
    values |= {name.replace("__", "."): value for name, value in fields.items()}
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]
