"""Reads the tokenizer of a Hugging Face directory: tokenizer.json, or vocab.json and merges.txt.

The file is data, so it is read without the `tokenizers` library. Four kinds come back: byte-level
BPEs, GPT-1's BPE over words, plain bytes, and characters. What these cannot say is refused: other
tokenizers would give a model other ids than it was trained on.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from gptjax.base.errors import UserError
from gptjax.base.files import require_fetched
from gptjax.conversion.byte_level import ranks_of_merges, read_merges, text_as_bytes
from gptjax.conversion.tokenizer_choice import ids_kept
from gptjax.tokenizers.bpe import EOT, GPT2_PATTERN, GPT2_VOCAB, BPETokenizer
from gptjax.tokenizers.gpt1 import END, NEWLINE, GPT1Tokenizer
from gptjax.tokenizers.plain import ByteTokenizer, CharTokenizer, Tokenizer
from gptjax.tokenizers.registry import tokenizer_from_json

Table = dict[str, Any]
Kind = Literal["gpt2", "openai-gpt"]
TOKENIZER, VOCABULARY, MERGES = "tokenizer.json", "vocab.json", "merges.txt"
SETTINGS, SPECIAL_MAP, ADDED = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
EVERY_CHARACTER = r"[\s\S]"  # the regex that cuts text into characters
_DAMAGED = (ValueError, KeyError, TypeError, AttributeError, RecursionError, IndexError)


def read_tokenizer_files(directory: Path, n_vocab: int, kind: Kind) -> Tokenizer:
    """The tokenizer of a directory, for a model of `n_vocab` ids of Hugging Face's type `kind`.

    A byte-level BPE may have fewer tokens than the model has ids; the ids after them are unused.
    Raises `UserError` if there is no tokenizer, if its files are damaged, if it says what ours
    cannot, or if it has more ids than the model.
    """
    ours = "give one of ours with --tokenizer, if it has the same ids"
    try:
        tokenizer = _read(directory, n_vocab, kind)
    except FileNotFoundError as error:
        raise UserError(
            f"{directory} has no tokenizer: expected {TOKENIZER}, or {VOCABULARY} and {MERGES}; "
            f"copy them there, or {ours}"
        ) from error
    except (*_DAMAGED, OSError) as error:
        reason = f"has no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"the tokenizer of {directory} cannot be used here: {reason}; {ours}"
        ) from error
    if tokenizer.n_vocab > n_vocab and ids_kept(tokenizer, n_vocab) is None:
        raise UserError(
            f"the tokenizer of {directory} does not fit its model: it has {tokenizer.n_vocab} ids, "
            f"the model has {n_vocab}; {ours}"
        )
    return tokenizer


def added_tokens(directory: Path) -> dict[str, int]:
    """Ids of the tokens that were added to a directory's tokenizer, such as `[PAD]`.

    The directory is one that `read_tokenizer_files` has read, or one without a tokenizer.
    """
    if not (directory / TOKENIZER).is_file():
        return _optional(directory / ADDED) if (directory / VOCABULARY).is_file() else {}
    found = _json(directory / TOKENIZER).get("added_tokens") or []
    return {added["content"]: added["id"] for added in found}


def _read(directory: Path, n_vocab: int, kind: Kind) -> Tokenizer:
    settings = _optional(directory / SETTINGS)
    path = directory / TOKENIZER
    table = _json(path) if path.is_file() else _table_of_files(directory, settings)
    if "model" not in table:  # this is a file of ours
        return tokenizer_from_json(json.dumps(table), str(path))
    model = table["model"]
    model_type = model.get("type", "BPE")  # old files leave it out
    if model_type == "WordLevel":
        return _characters(table)
    if model_type != "BPE":
        raise ValueError(f"it is a {model_type} model; BPE and single characters are known here")
    if model.get("dropout"):
        raise ValueError("its BPE drops merges at random")
    merges = read_merges(model["merges"])
    if (model.get("end_of_word_suffix") or "") == END:
        return _words(table, merges)
    if model.get("end_of_word_suffix") or model.get("continuing_subword_prefix"):
        raise ValueError("its BPE marks the ends or the insides of words")
    if kind == "openai-gpt" and not _is_byte_level(table):
        raise ValueError("it is neither GPT-1's BPE over words nor a byte-level BPE")
    return _byte_level(table, merges, _end_of_text(table, directory, settings), n_vocab)


def _table_of_files(directory: Path, settings: Table) -> Table:
    """The content of a tokenizer.json that says what vocab.json and merges.txt do."""
    vocab = _json(directory / VOCABULARY)
    lines = (directory / MERGES).read_text("utf-8").split("\n")
    if lines[0].startswith("#version"):
        lines = lines[1:]
    model: Table = {"vocab": vocab, "merges": [line for line in lines if line.strip()]}
    if any(token.endswith(END) for token in vocab):
        model["end_of_word_suffix"] = END
    added = [{"content": token, "id": i} for token, i in _optional(directory / ADDED).items()]
    spaces = {"add_prefix_space": settings.get("add_prefix_space", False)}
    return {"model": model, "pre_tokenizer": {"type": "ByteLevel", **spaces}, "added_tokens": added}


def _parts(step: Table | None, name: str) -> list[Table]:
    """The steps of a normalizer or pre-tokenizer, which may be one, several or none."""
    if step is None:
        return []
    return step[name] if step["type"] == "Sequence" else [step]


def _is_byte_level(table: Table) -> bool:
    steps = _parts(table.get("pre_tokenizer"), "pretokenizers")
    return bool(steps) and steps[-1]["type"] == "ByteLevel"


def _pattern(table: Table) -> str | None:
    """The regex that cuts text into words before the merges; None for no cuts."""
    if steps := _parts(table.get("normalizer"), "normalizers"):
        raise ValueError(f"it changes text first, by {steps[0]['type']}")
    steps = _parts(table.get("pre_tokenizer"), "pretokenizers")
    if not steps or steps[-1]["type"] != "ByteLevel":
        raise ValueError(f"it cuts words by {[s['type'] for s in steps]}, not over bytes")
    if steps[-1].get("add_prefix_space", True):
        raise ValueError("it puts a blank before every text (add_prefix_space)")
    if len(steps) == 1:
        return GPT2_PATTERN if steps[0].get("use_regex", True) else None
    split = steps[0]
    is_plain = split["type"] == "Split" and "Regex" in split.get("pattern", {})
    keeps = (split.get("behavior"), split.get("invert", False))
    if (
        len(steps) > 2
        or steps[1].get("use_regex", True)
        or not is_plain
        or keeps not in (("Isolated", False), ("Removed", True))
    ):
        raise ValueError("it cuts words in several steps; one regex is known here")
    return split["pattern"]["Regex"]


def _adds_tokens(step: Table | None) -> bool:
    """Whether a post-processor puts special tokens around every text."""
    found = [s["type"] for s in _parts(step, "processors")]
    if "TemplateProcessing" not in found:
        return bool(set(found) - {"ByteLevel"})
    templates = [s["single"] for s in _parts(step, "processors") if s["type"] != "ByteLevel"]
    return any("SpecialToken" in piece for template in templates for piece in template)


def _end_of_text(table: Table, directory: Path, settings: Table) -> int:
    """The id of end-of-text: the token of that name, else the one that ends sequences."""
    ids: dict[str, int] = dict(table["model"]["vocab"])
    ids |= {added["content"]: added["id"] for added in table.get("added_tokens") or []}
    named = {**_optional(directory / SPECIAL_MAP), **settings}
    found = named.get("eos_token")
    content = found.get("content") if isinstance(found, dict) else found
    for name in (EOT, content):
        if name in ids:
            return ids[name]
    raise ValueError("it has no token that ends a text, neither <|endoftext|> nor an eos_token")


def _byte_level(table: Table, merges: list[tuple[str, str]], eot: int, n_vocab: int) -> Tokenizer:
    pattern, model = _pattern(table), table["model"]
    if _adds_tokens(table.get("post_processor")):
        raise ValueError("it puts special tokens around every text")
    special = {added["id"] for added in table.get("added_tokens") or []} | {eot}
    vocab: Mapping[str, int] = {t: i for t, i in model["vocab"].items() if i not in special}
    ranks = ranks_of_merges(vocab, merges)
    made = {first + second for first, second in merges}
    unmade = [token for token in vocab if token not in made and len(text_as_bytes(token)) > 1]
    if unmade and not model.get("ignore_merges"):
        raise ValueError(f"{len(unmade)} tokens come from no merge, such as {unmade[0]!r}")
    if not merges and not unmade:
        if eot != 256 or any(ranks[bytes([byte])] != byte for byte in range(256)):
            raise ValueError("its ids of single bytes are not the bytes' values, with 256 at last")
        return ByteTokenizer()
    if pattern is None:
        raise ValueError("it merges across words: it has no regex that cuts text first")
    ids = max(*ranks.values(), eot, *special) + 1
    ids = max(ids, n_vocab)
    name = "gpt2" if ids == GPT2_VOCAB and eot == GPT2_VOCAB - 1 else f"bpe:{ids}"
    try:
        return BPETokenizer(name, ranks, pattern, eot, ids)
    except BaseException as error:  # tiktoken panics on a regex that it cannot read
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise ValueError(f"its regex {pattern!r} is not one that tiktoken knows") from error


def _words(table: Table, merges: list[tuple[str, str]]) -> GPT1Tokenizer:
    """GPT-1's: without the special tokens that fine-tuning adds after the vocabulary."""
    steps = {step["type"] for step in _parts(table.get("normalizer"), "normalizers")}
    if steps and not steps & {"BertNormalizer", "Lowercase"}:
        raise ValueError("it keeps capital letters, which GPT-1's tokenizer does not")
    ids = table["model"]["vocab"]
    added = {a["content"] for a in table.get("added_tokens") or []} - {"<unk>"}
    tokens = sorted((token for token in ids if token not in added), key=ids.__getitem__)
    if [ids[token] for token in tokens] != list(range(len(tokens))):
        raise ValueError("its ids are not 0, 1, 2, ...")
    if NEWLINE not in ids:
        raise ValueError("it has no token for a line end")
    return GPT1Tokenizer(tokens, [" ".join(merge) for merge in merges])


def _characters(table: Table) -> CharTokenizer:
    vocab, steps = table["model"]["vocab"], _parts(table.get("pre_tokenizer"), "pretokenizers")
    tokens = sorted((t for t in vocab if t != EOT), key=vocab.__getitem__)
    is_ours = [s.get("pattern") for s in steps] == [{"Regex": EVERY_CHARACTER}]
    ids = [vocab[token] for token in tokens] + ([vocab[EOT]] if EOT in vocab else [])
    if not is_ours or table.get("normalizer") or ids != list(range(len(ids))):
        raise ValueError("it is a table of words; only one of single characters is known here")
    return CharTokenizer("".join(tokens))


def _json(path: Path) -> Table:
    require_fetched(path)
    table = json.loads(path.read_text("utf-8"))
    if not isinstance(table, dict):
        raise ValueError(f"{path.name} is not an object of JSON")
    return table


def _optional(path: Path) -> Table:
    return _json(path) if path.is_file() else {}
