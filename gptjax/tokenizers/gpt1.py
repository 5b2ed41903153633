"""GPT-1's tokenizer: it standardises text, cuts it into words, and joins each by 40,000 merges.

The steps are those of Radford et al. (2018), published in openai/finetune-transformer-lm. ftfy
repairs the text, dashes become hyphens, runs of punctuation get blanks around them, and white space
is folded. spaCy cuts words; here `gptjax.tokenizers.english` does. Words become lower case and pass
a BPE over characters, the last of which carries `</w>`. Decoding does not restore the text: case,
kinds of blanks and unknown characters are lost.

Measured once against spaCy 3.8: the ids agree on every line of tinyshakespeare.txt (277,109 tokens)
and on all but 17 of the 5,574 lines of sms_spam.tsv (`u.So`, emoticons at the end of words, doubled
quotes). Hugging Face's OpenAIGPTTokenizer joins words by the same merges, without a difference. But
it cuts them as BERT does, at every apostrophe and full stop (`don ' t` for `do n't`), drops line
ends and accents, and repairs nothing: of our tokens 97.0 % and 93.5 % are among its own, in order,
and 85.2 % and 40.3 % of the lines agree. The original weights were trained on spaCy's words.
"""
# ruff: noqa: RUF001 - this file tells apart dashes and accents that look alike

import json
import os
import re
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.base.errors import UserError
from gptjax.tokenizers.english import words_of
from gptjax.tokenizers.plain import utf8

FILES = (("encoder_bpe_40000.json", "vocab_40000.bpe"), ("vocab.json", "merges.txt"))
HUB_REPOSITORY = "openai-community/openai-gpt"
UNKNOWN = 0  # <unk>, which also ends documents: the published vocabulary has no other special token
SPECIAL_TOKENS = {"_start_": 40_478, "_delimiter_": 40_479, "_classify_": 40_480}
"""Ids of the tokens around the inputs of fine-tuning, by their names in OpenAI's code; the paper
calls them start, delimiter and extract. They follow the published vocabulary, in its padding."""
RULES = 1  # version of standardisation and words; part of the fingerprint
END = "</w>"
NEWLINE = "\n" + END
REMEMBERED_WORDS = 2**18
_RUNS = re.compile(r"(-+|~+|!+|\"+|;+|\?+|\++|,+|\)+|\(+|\\+|/+|\*+|\[+|\]+|}+|{+|\|+|_+)")
_SIGNS = str.maketrans({"—": "-", "–": "-", "―": "-", "…": "...", "´": "'"})


class GPT1Tokenizer:
    """The tokenizer of 40,478 published ids, from its vocabulary and its merges, both in order."""

    name = "gpt1"
    eot_id = UNKNOWN

    def __init__(self, tokens: Sequence[str], merges: Sequence[str]):
        self.tokens, self.merges = list(tokens), list(merges)
        self.n_vocab = len(self.tokens)
        self._ids = {token: i for i, token in enumerate(self.tokens)}
        pairs = [merge.split(" ") for merge in self.merges]
        self._ranks = {(first, second): rank for rank, (first, second) in enumerate(pairs)}
        self._known: dict[str, list[int]] = {"\n": [self._ids.get(NEWLINE, UNKNOWN)]}

    def encode(self, text: str) -> np.ndarray:
        """Ids of the standardised text; a character without a token becomes id 0."""
        ids: list[int] = []
        for chunk in standardise(utf8(text).decode()).split(" "):
            ids += self._chunk_ids(chunk)
        return np.array(ids, dtype=np.uint32)

    def decode(self, ids: Sequence[int]) -> str:
        """Lower-case words, with a blank after each but none around line ends."""
        text = b"".join(self.token_bytes(int(i)) for i in ids).decode("utf-8", "replace")
        return text.replace(" \n", "\n")

    def token_bytes(self, token: int) -> bytes:
        """The characters, with a blank in place of `</w>`; empty for id 0."""
        return self._bytes_of_id[token]

    def to_json(self) -> str:
        """Vocabulary, merges and the version of the rules."""
        table = {"name": self.name, "rules": RULES, "tokens": self.tokens, "merges": self.merges}
        return json.dumps(table)

    @cached_property
    def _bytes_of_id(self) -> list[bytes]:
        texts = [t[: -len(END)] + " " if t.endswith(END) else t for t in self.tokens]
        texts = ["\n" if t == "\n " else t for t in texts]
        return [b"", *map(utf8, texts[1:])]

    def _chunk_ids(self, chunk: str) -> list[int]:
        found = self._known.get(chunk)
        if found is None:
            found = [i for word in words_of(chunk) for i in self._word_ids(word.lower())]
            if len(self._known) < REMEMBERED_WORDS:
                self._known[chunk] = found
        return found

    def _word_ids(self, word: str) -> list[int]:
        """Sennrich et al.'s loop: join the adjacent pair of lowest rank, everywhere in the word."""
        parts = [*word[:-1], word[-1] + END]
        while len(parts) > 1:
            pairs = list(pairwise(parts))
            best = min(pairs, key=lambda pair: self._ranks.get(pair, len(self._ranks)))
            if best not in self._ranks:
                break
            joined, i = [], 0
            while i < len(parts):
                both = tuple(parts[i : i + 2]) == best
                joined.append(parts[i] + parts[i + 1] if both else parts[i])
                i += 2 if both else 1
            parts = joined
        return [self._ids.get(part, UNKNOWN) for part in parts]


def standardise(text: str) -> str:
    """GPT-1's `text_standardize` after ftfy, except that it keeps line ends at both ends.

    Text comes in pieces, and the end of a piece is not the end of the document.
    """
    text = _RUNS.sub(r" \1 ", _ftfy(text).translate(_SIGNS))
    text = re.sub(r"\s*\n\s*", " \n ", text)
    return re.sub(r"[^\S\n]+", " ", text).strip(" ")


def _ftfy(text: str) -> str:
    try:
        import ftfy
    except ImportError as error:
        raise UserError(
            "the gpt1 tokenizer repairs text with ftfy, which is not installed: "
            "pip install 'gptjax[gpt1]'"
        ) from error
    return ftfy.fix_text(text)


def gpt1_from_table(table: dict[str, Any]) -> GPT1Tokenizer:
    """Make the tokenizer from its JSON; raises `ValueError` if that is damaged or newer."""
    if table["rules"] != RULES:
        raise ValueError(f"it has rules {table['rules']!r}, this version knows {RULES}")
    if not all(isinstance(t, str) for t in [*table["tokens"], *table["merges"]]):
        raise ValueError("a token or a merge is not text")
    return GPT1Tokenizer(table["tokens"], table["merges"])


def gpt1(files: Path | None = None) -> GPT1Tokenizer:
    """GPT-1's tokenizer from local files, else from the hub.

    `files` (or the directory that GPTJAX_GPT1_DIR names) holds OpenAI's two files, or Hugging
    Face's two of the same content. Without it, huggingface_hub finds or fetches the latter, if it
    is installed. Raises `UserError` if neither works.
    """
    directory = files or (Path(d) if (d := os.environ.get("GPTJAX_GPT1_DIR")) else None)
    if directory is None:
        vocabulary, merges = map(_from_hub, FILES[1])
    else:
        pairs = [(directory / v, directory / m) for v, m in FILES]
        if not (there := [pair for pair in pairs if all(path.is_file() for path in pair)]):
            raise UserError(
                f"the gpt1 tokenizer needs {' and '.join(map(str, pairs[0]))} of OpenAI's "
                f"release, or {' and '.join(FILES[1])} of {HUB_REPOSITORY}"
            )
        vocabulary, merges = there[0]
    try:
        ids: dict[str, int] = json.loads(vocabulary.read_text("utf-8"))
        tokens = sorted(ids, key=ids.__getitem__)
        if [ids[token] for token in tokens] != list(range(len(tokens))) or NEWLINE not in ids:
            raise ValueError("its ids are not 0, 1, 2, ... or it has no token for a line end")
        lines = merges.read_text("utf-8").split("\n")[1:]  # the first line is a version
        return GPT1Tokenizer(tokens, [line for line in lines if line])
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{vocabulary} and {merges} are not GPT-1's files: {error}") from error


def _from_hub(name: str) -> Path:
    help_ = (
        "set GPTJAX_GPT1_DIR to a directory with OpenAI's "
        f"{' and '.join(FILES[0])}, or Hugging Face's {' and '.join(FILES[1])}"
    )
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise UserError(
            f"the gpt1 tokenizer's files are not here: {help_}; or install huggingface_hub"
        ) from error
    try:
        return Path(hf_hub_download(HUB_REPOSITORY, name))
    except Exception as error:  # from its HTTP library, which it has changed before
        raise UserError(
            f"{name} of {HUB_REPOSITORY} is not cached, and it cannot be downloaded from here: "
            f"{help_}. ({type(error).__name__})"
        ) from error
