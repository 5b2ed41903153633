"""What a run reads: one prepared directory, or a mixture of several, each shuffled by itself.

Every source is repeated as often as the plan asks for; its own windows come once an epoch. The
window of a row is a function of seed and row alone, so resuming and dividing rows among processes
are what they are without a mixture.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from gptjax.config import Config
from gptjax.data.manifest import TOKENIZER, Manifest, is_prepared, read_manifest
from gptjax.data.windows import TokenWindows
from gptjax.errors import UserError
from gptjax.mixing import Mixture, parse_change, parse_source
from gptjax.ramp import batch_ramp


class Corpus:
    """The data of a config, opened and checked; `manifest` is that of its first source."""

    def __init__(self, config: Config):
        data, self._ramp = config.data, batch_ramp(config)
        self._context, self._max_steps = config.context, config.train.max_steps
        self.mixture: Mixture | None = None
        self.changes, self._changes = data.mixture_changes, []
        if not data.mixture:
            self.manifests = (read_manifest(Path(data.path)),)
        else:
            sources = [parse_source(text) for text in data.mixture]
            self._changes = [parse_change(text, len(sources)) for text in self.changes]
            self.mixture = Mixture(sources, self._changes, self._ramp.rows_before)
            self.manifests = _read_all([Path(s.path) for s in sources], data.tokenizer)
        self.manifest = self.manifests[0]
        self._windows = [TokenWindows(m, "train", self._context) for m in self.manifests]
        names = [manifest.directory.name for manifest in self.manifests]
        clear = len(set(names)) == len(names)
        self.names = names if clear else [str(m.directory) for m in self.manifests]

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with any token, and with any weight of a mixture."""
        return self._fingerprint(self.changes)

    def fingerprint_until(self, step: int) -> str:
        """The same of the first `step` updates: what changes later is left out."""
        past = [f"{at}={','.join(map(str, w))}" for at, w in self._changes if at < step]
        return self._fingerprint(past)

    def _fingerprint(self, changes: Sequence[str]) -> str:
        if self.mixture is None:
            return self.manifest.fingerprint
        weights = [str(source.weight) for source in self.mixture.sources]
        content = json.dumps([[m.fingerprint for m in self.manifests], weights, changes])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @property
    def tokens(self) -> int:
        """Training tokens of all sources."""
        return sum(manifest.splits["train"].tokens for manifest in self.manifests)

    def training_windows(self) -> "TokenWindows | MixedWindows":
        """Windows to train on; raises `UserError` where a source would be read too often."""
        if self.mixture is None:
            return self._windows[0]
        if too_often := [
            f"{name} would be read {epochs:.2f} times, at most {source.max_epochs:g} are allowed"
            for name, source, epochs in zip(
                self.names, self.mixture.sources, self._epochs(self._max_steps), strict=True
            )
            if source.max_epochs is not None and epochs > source.max_epochs
        ]:
            raise UserError(
                f"data.mixture does not allow what {self._max_steps:,} updates would repeat: "
                f"{'; '.join(too_often)}: lower their weights, or allow more epochs"
            )
        return MixedWindows(self._windows, self.mixture)

    def validation_windows(self) -> list[TokenWindows]:
        """The validation windows of every source."""
        return [TokenWindows(manifest, "val", self._context) for manifest in self.manifests]

    def shares(self) -> list[float]:
        """The share of every source in all rows of the run, by which validation is weighted."""
        if self.mixture is None:
            return [1.0]
        counts = self.mixture.counts(self._ramp.rows_before(self._max_steps))
        return [count / sum(counts) for count in counts]

    @property
    def measure(self) -> str:
        """What the validation loss is the mean of; losses of another measure cannot be compared."""
        return "" if self.mixture is None else " ".join(f"{share:.6f}" for share in self.shares())

    def lines(self, step: int) -> list[str]:
        """What to say before updates from `step` on; of a mixture, shares and epochs of each."""
        if self.mixture is None:
            split, val = self.manifest.splits["train"], self.manifest.splits["val"]
            return [
                f"data     {self.manifest.directory}: {split.tokens:,} training tokens in "
                f"{len(split.shards)} shards, {val.tokens:,} for validation, tokenizer "
                f"{self.manifest.tokenizer}"
            ]
        begin, end = self._epochs(step), self._epochs(self._max_steps)
        lines = [
            f"mixture  {share:6.1%} {name}: {manifest.splits['train'].tokens:,} tokens, "
            f"epochs {first:.2f} to {last:.2f}"
            for name, share, manifest, first, last in zip(
                self.names, self.mixture.shares(step), self.manifests, begin, end, strict=True
            )
        ]
        if self.changes:
            lines.append(f"         (other weights after an update: {', '.join(self.changes)})")
        return lines

    def progress(self, step: int) -> dict[str, float]:
        """Epochs of every source of a mixture after `step` updates, for metrics.jsonl."""
        if self.mixture is None:
            return {}
        done = zip(self.names, self._epochs(step), strict=True)
        return {f"epochs/{name}": epochs for name, epochs in done}

    def _epochs(self, step: int) -> list[float]:
        assert self.mixture is not None
        counts = self.mixture.counts(self._ramp.rows_before(step))
        return [n / max(1, len(w)) for n, w in zip(counts, self._windows, strict=True)]


class MixedWindows:
    """The training windows of several sources, by a plan."""

    def __init__(self, windows: list[TokenWindows], mixture: Mixture):
        self.windows, self.mixture = windows, mixture

    def in_order(self, seed: int) -> "MixedOrder":
        """The endless order of rows of a seed; raises `UserError` for a source without a window."""
        return MixedOrder(self, seed)


class MixedOrder:
    """Row r of a mixture as a function of seed and r."""

    def __init__(self, mixed: MixedWindows, seed: int):
        # a seed of its own for every source, or two copies of one text would go in step
        seeds = np.random.SeedSequence(seed).generate_state(len(mixed.windows)).tolist()
        self._mixture = mixed.mixture
        self._orders = [
            windows.in_order(seed) if is_read else None  # one that is only validated on
            for windows, seed, is_read in zip(
                mixed.windows, seeds, mixed.mixture.is_read(), strict=True
            )
        ]

    def __getitem__(self, row: int) -> Any:
        source, index = self._mixture.place(row)
        order = self._orders[source]
        assert order is not None
        return order[index]


def _read_all(directories: list[Path], tokenizer: str | None) -> tuple[Manifest, ...]:
    """The manifests of all sources; raises `UserError` that names all that are missing."""
    if missing := [d for d in directories if not is_prepared(d)]:
        if there := [d for d in directories if d not in missing]:
            tokenizer = str(there[0] / TOKENIZER)  # that very one, wherever it came from
        commands = [
            f"python -m gptjax.prepare --input FILE... --tokenizer {quote(tokenizer or 'NAME')} "
            f"--out {quote(str(directory))}"
            for directory in missing
        ]
        raise UserError(
            f"the mixture's {', '.join(map(str, missing))} hold no prepared data: run\n  "
            + "\n  ".join(commands)
        )
    manifests = tuple(read_manifest(d) for d in directories)
    first = manifests[0]
    for other in manifests[1:]:
        if other.tokenizer_fingerprint != first.tokenizer_fingerprint:
            raise UserError(
                f"a mixture has one tokenizer, but {first.directory} was tokenised with "
                f"{first.tokenizer} ({first.tokenizer_fingerprint}) and {other.directory} with "
                f"{other.tokenizer} ({other.tokenizer_fingerprint}): prepare one of them with "
                f"--tokenizer DIR/{TOKENIZER} of the other"
            )
    return manifests
