"""samples.md: texts that a run writes while it trains, one under each step's heading."""

import re
from pathlib import Path

from gptjax.base.files import write_atomically

HEADING = re.compile(rb"^## step (\d+)\n\n~~~text$", re.MULTILINE)


def append_sample(path: Path, step: int, text: str) -> None:
    """Add a text to samples.md."""
    with path.open("ab") as file:
        file.write(f"## step {step}\n\n~~~text\n{text}\n~~~\n\n".encode("utf-8", "replace"))


def forget_samples_after(path: Path, step: int) -> None:
    """Drop the samples of steps that will run again."""
    if not path.exists():
        return
    content = path.read_bytes()
    later = (m.start() for m in HEADING.finditer(content) if int(m[1]) > step)
    write_atomically(path, content[: next(later, len(content))])


def has_sample(path: Path, step: int) -> bool:
    """Whether samples.md has the text of a step."""
    return path.exists() and any(int(m[1]) == step for m in HEADING.finditer(path.read_bytes()))
