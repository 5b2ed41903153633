"""Texts as sequences of tokens for a classifier: the input transformations of GPT-1.

Radford et al. (2018), section 3.3 and figure 1. Start, delimiter and extract are the three ids
after the vocabulary. A sequence that is too long keeps them and loses the end of its longer text.
"""

from collections.abc import Sequence

import numpy as np

from gptjax.base.errors import UserError
from gptjax.config import ClassifyConfig
from gptjax.config.examples import SPECIAL_IDS
from gptjax.tokenizers.plain import Tokenizer


class Transformation:
    """The sequences of an example, of at most `longest` tokens each."""

    def __init__(self, classify: ClassifyConfig, tokenizer: Tokenizer, longest: int):
        self.form, self._reads_extract = classify.form, classify.read == "extract"
        self._tokenizer, self._longest = tokenizer, longest
        ids = range(tokenizer.n_vocab, tokenizer.n_vocab + SPECIAL_IDS)
        self._start, self._delimiter, self._extract = (np.array([id], np.int32) for id in ids)
        texts = 1 if self.form == "single" else 2
        self.room = longest - (texts + 1 if self._reads_extract else 0)
        if self.room < texts:
            raise UserError(
                f"a context of {longest} tokens leaves {max(0, self.room)} for the text of an "
                f"example of form {self.form}: give a larger --train.context"
            )

    def sequences(self, texts: Sequence[str]) -> tuple[tuple[np.ndarray, ...], bool]:
        """The sequences of int32 ids, and whether any of them lost tokens.

        One text, or two, or for a choice a text and its answers.
        """
        tokens = [self._tokenizer.encode(text).astype(np.int32) for text in texts]
        first, rest = tokens[0], tokens[1:]
        if self.form == "single":
            together = [(first,)]
        elif self.form == "similarity":
            together = [(first, rest[0]), (rest[0], first)]
        else:
            together = [(first, other) for other in rest]
        is_cut = any(sum(map(len, parts)) > self.room for parts in together)
        return tuple(self._joined(parts) for parts in together), is_cut

    def _joined(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        lengths = fitted_lengths([len(part) for part in parts], self.room)
        kept = [part[:length] for part, length in zip(parts, lengths, strict=True)]
        if not self._reads_extract:
            return kept[0]
        between = [self._delimiter, kept[1]] if len(kept) > 1 else []
        return np.concatenate([self._start, kept[0], *between, self._extract])


def fitted_lengths(lengths: Sequence[int], room: int) -> list[int]:
    """The lengths of one or two texts that share a room; the longer one is cut.

    >>> fitted_lengths([10, 4], 9), fitted_lengths([10, 8], 9)
    ([5, 4], [5, 4])
    """
    if sum(lengths) <= room:
        return list(lengths)
    if len(lengths) == 1:
        return [room]
    first, second = lengths
    half = room // 2
    if second <= half:
        return [room - second, second]
    if first <= room - half:
        return [first, room - first]
    return [room - half, half]
