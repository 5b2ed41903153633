"""samples.md: texts that a run writes while it trains, one under each update's heading."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from gptjax.config import Config
from gptjax.data.tokenizers import Tokenizer
from gptjax.files import write_atomically
from gptjax.sampling import stream_text
from gptjax.training.signals import StopRequest

HEADING = re.compile(rb"^## update (\d+)\n\n~~~text$", re.MULTILINE)


def sample_after(
    step: int,
    config: Config,
    params: Any,
    tokenizer: Tokenizer,
    stop: StopRequest,
    beat: Callable[[], None],
) -> str | None:
    """A text with its prompt, the same whenever this update is reached; None once stopped.

    `beat` is called with every token.

    Parameters that are divided among devices are used where they lie, so all processes of a run
    have to call this.
    """
    key = jax.random.fold_in(jax.random.key(config.train.seed), step)
    if all(x.is_fully_replicated for x in jax.tree.leaves(params)):
        params = jax.tree.map(lambda x: x.addressable_data(0), params)  # one device is enough
    pieces = [config.sample.prompt]
    for piece in stream_text(config.model, params, tokenizer, key, config.sample):
        pieces.append(piece)
        beat()
        if stop:
            return None
    return "".join(pieces)


def append_sample(path: Path, step: int, text: str) -> None:
    """Add a text to samples.md."""
    with path.open("ab") as file:
        file.write(f"## update {step}\n\n~~~text\n{text}\n~~~\n\n".encode("utf-8", "replace"))


def forget_samples_after(path: Path, step: int) -> None:
    """Drop the samples of updates that will be done again."""
    if not path.exists():
        return
    content = path.read_bytes()
    later = (m.start() for m in HEADING.finditer(content) if int(m[1]) > step)
    write_atomically(path, content[: next(later, len(content))])
