"""The loss of a text under a window that slides over it: `evaluate --on perplexity`.

The windows are those of training: T + 1 tokens that step by T, so that every token but the very
first is scored once, the last ones in a shorter window. With a smaller stride S, a window begins
every S tokens, and only the tokens that no window before it has scored count, so all but the first
T have T - S tokens of context or more. The text is tokenised as `python -m gptjax.prepare` does
it, from any format that it reads, with the tokenizer of the model. Of several documents, all but
the last end with end-of-text, which is scored and has no bytes.

Reference, for a user with GPT-2's weights: on the raw test set of WikiText-2, all lines joined,
with T = 1024, the perplexity of 124M is 29.94 by Hugging Face's script (transformers#13761), and
Radford et al. (2019) give 29.41. On nanoGPT's validation split of OpenWebText the losses of 124M,
355M, 774M and 1558M are 3.12, 2.84, 2.67 and 2.54 (its README); on the first 10,485,760 validation
tokens of FineWeb the loss of 124M is 3.29 (README of modded-nanogpt).
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gptjax.base.errors import UserError
from gptjax.base.files import require_fetched
from gptjax.config import DataConfig
from gptjax.config.names import HUB_FORM, read_hub_name
from gptjax.data.loader import evenly_spread
from gptjax.data.manifest import TOKENIZER, is_prepared, read_manifest, read_tokenizer
from gptjax.data.windows import TokenWindows
from gptjax.evaluation.estimates import Figures, text_figures
from gptjax.evaluation.scoring import Request
from gptjax.evaluation.setting import Setting
from gptjax.preparation.oddities import Oddities, describe_oddities
from gptjax.preparation.pipeline import prepare_shards
from gptjax.preparation.sources import find_inputs
from gptjax.tokenizers.registry import bytes_per_token, fingerprint

AT_ONCE = 64  # batches of windows whose tokens are read at once


class Window(NamedTuple):
    """Tokens `start` to before `stop` of a text; those from `scored` on are scored."""

    start: int
    scored: int
    stop: int


def sliding_windows(tokens: int, context: int, stride: int) -> Iterator[Window]:
    """Windows of at most `context` + 1 tokens that score each token but the first once.

    >>> [tuple(window) for window in sliding_windows(8, context=4, stride=2)]
    [(0, 1, 5), (2, 5, 7), (4, 7, 8)]
    """
    scored = 1
    for number in range(count_windows(tokens, context, stride)):
        start = number * stride
        stop = min(tokens, start + context + 1)
        yield Window(start, scored, stop)
        scored = stop


def count_windows(tokens: int, context: int, stride: int) -> int:
    """The number of `sliding_windows`.

    >>> count_windows(2049, 1024, 1024), count_windows(2050, 1024, 512)
    (2, 4)
    """
    if tokens < 2:
        return 0
    return 1 + max(0, -(-(tokens - 1 - context) // stride))


def measure_text(setting: Setting) -> Figures:
    """Score a text or the validation split of a prepared directory.

    A limit takes whole windows that are spread evenly, as the validation of a run does, so it gives
    the loss that the run records. Losses are summed over stretches of T scored tokens, whatever the
    stride, and the standard errors come from the spread between stretches; a text that is shorter
    has its tokens as stretches.

    Raises `UserError` for data without text, or with another tokenizer than the model's.
    """
    context = setting.scorer.context
    stride = context if setting.stride is None else setting.stride
    with opened(setting) as (line, tokens):
        windows = list(sliding_windows(tokens, context, stride))
        if setting.limit is not None and setting.limit < len(windows):
            whole = [w for w in windows if w.stop - w.start > context]
            chosen = [whole[number] for number in evenly_spread(whole, setting.limit)]
            # the first window scores all of its tokens; among few windows it would weigh too much
            windows = [w._replace(scored=max(w.scored, w.stop - stride)) for w in chosen]
        if not windows:
            raise UserError(f"{setting.data} has {tokens} tokens: expected 2 or more to score")
        losses, targets = _scored_tokens(setting, line, windows)
    sizes = bytes_per_token(setting.run.tokenizer)[targets]
    stretch = context if len(losses) > context else 1
    starts = np.arange(0, len(losses), stretch)
    figures = text_figures(
        np.add.reduceat(losses, starts, dtype=np.float64),
        np.diff(np.append(starts, len(losses))),
        np.add.reduceat(sizes, starts, dtype=np.int64),
    )
    return {**figures, "windows": len(windows), "stride": stride}


def _scored_tokens(
    setting: Setting, line: TokenWindows, windows: list[Window]
) -> tuple[np.ndarray, np.ndarray]:
    """The loss of every scored token in nats, and its id, in the order of the text."""
    losses: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    step = AT_ONCE * setting.scorer.batch_rows
    with setting.bar(len(windows), "windows") as advance:
        for at in range(0, len(windows), step):
            requests = []
            for start, scored, stop in windows[at : at + step]:
                tokens = line.stretch(start, stop)
                requests.append(Request(tokens[: scored - start], tokens[scored - start :]))
            losses += [-x for x in setting.scorer.token_logprobs(requests, advance)]
            targets += [np.asarray(request.continuation) for request in requests]
    return np.concatenate(losses), np.concatenate(targets)


@contextmanager
def opened(setting: Setting) -> Iterator[tuple[TokenWindows, int]]:
    """The tokens of the data, and how many of them to use.

    A text is tokenised into a temporary directory, so its size is not limited by memory.
    """
    directory, tokenizer = Path(setting.data), setting.run.tokenizer
    require_fetched(directory)
    if is_prepared(directory):
        manifest = read_manifest(directory)
        read_tokenizer(manifest)
        if manifest.tokenizer_fingerprint != (own := fingerprint(tokenizer)):
            raise UserError(
                f"{directory} was tokenised with {manifest.tokenizer} (fingerprint "
                f"{manifest.tokenizer_fingerprint}), the model reads {tokenizer.name} ({own}): "
                "give the text itself, or prepare it with the tokenizer of the model"
            )
        if not manifest.splits["val"].tokens:
            raise UserError(
                f"{directory} has no validation tokens: prepare it with a larger --val-fraction"
            )
        yield (
            TokenWindows(manifest, "val", setting.scorer.context),
            manifest.splits["val"].tokens,
        )
        return
    if not directory.exists() and read_hub_name(setting.data) is None:
        raise UserError(
            f"there is no {setting.data}: expected a text, a prepared directory, or a data set of "
            f"the hub, {HUB_FORM}"
        )
    with tempfile.TemporaryDirectory(prefix="gptjax-evaluate-") as made:
        table = Path(made) / TOKENIZER
        table.write_text(tokenizer.to_json(), "utf-8")
        is_hub = not directory.exists()
        data = DataConfig(
            path=str(Path(made) / "data"),
            tokenizer=str(table),
            inputs=() if is_hub else (setting.data,),
            hub=setting.data if is_hub else None,
            val_fraction=0.0,
            text_field=setting.text_field,
        )
        oddities = Oddities()
        try:
            inputs = find_inputs(data, oddities)
        except UserError as error:
            if not is_hub:
                raise
            raise UserError(f"there is no {setting.data} on this machine, and {error}") from error
        manifest = prepare_shards(data, inputs, oddities=oddities)
        for note in describe_oddities(manifest.notes, oddities.first):
            setting.note(note)
        # the end-of-text after the last document is not part of the text
        tokens = max(0, manifest.splits["train"].tokens - 1)
        yield TokenWindows(manifest, "train", setting.scorer.context), tokens
