"""The grammar of hub names, mixtures, tokenizer names and trace windows; nothing is looked up."""

import os.path
import re
import shlex
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

TOKENIZERS = ("gpt1", "gpt2", "bytes", "chars")
HUB_FORM = (
    "OWNER/NAME, OWNER/NAME:SUBSET or OWNER/NAME:SUBSET:SPLIT, where @REVISION may follow NAME"
)
TESTS = ("perplexity", "wikitext", "hellaswag", "lambada", "choices")
_NAME = re.compile(
    r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[^:@\s]+))?"
    r"(:(?P<subset>[^:/\s]*))?(:(?P<split>\w[\w.-]*))?",
    re.ASCII,
)


class HubName(NamedTuple):
    """A data set on the hub; without a subset or a revision, the hub's default one."""

    repository: str
    revision: str | None
    subset: str | None
    split: str


def read_hub_name(text: str) -> HubName | None:
    """Read `HUB_FORM`; None if the text is something else.

    >>> read_hub_name("owner/name@v2:subset")
    HubName(repository='owner/name', revision='v2', subset='subset', split='train')
    """
    found = _NAME.fullmatch(text)
    if found is None:
        return None
    repository, revision, subset, split = found.group("repository", "revision", "subset", "split")
    return HubName(repository, revision, subset or None, split or "train")


class MixtureSource(NamedTuple):
    """A prepared directory, its weight, and the largest number of epochs allowed."""

    path: str
    weight: Fraction
    max_epochs: float | None


def parse_source(text: str) -> MixtureSource:
    """Read DIR=WEIGHT or DIR=WEIGHT:EPOCHS; raises ValueError with the mistake.

    Weight 0 is for a source that a later change brings in, or that is used only for validation.

    >>> parse_source("data/books=30:4")
    MixtureSource(path='data/books', weight=Fraction(30, 1), max_epochs=4.0)
    """
    path, is_there, numbers = text.rpartition("=")
    weight, is_capped, epochs = numbers.partition(":")
    if not is_there or not path:
        raise ValueError(f"{text!r} has no directory before a =")
    most = float(_positive(epochs, text)) if is_capped else None
    return MixtureSource(path, _number(weight, text), most)


def parse_change(text: str, sources: int) -> tuple[int, list[Fraction]]:
    """Read STEP=WEIGHT,WEIGHT,... with a weight for every source; raises ValueError.

    >>> parse_change("9000=50,0.5", sources=2)
    (9000, [Fraction(50, 1), Fraction(1, 2)])
    """
    step, _, numbers = text.partition("=")
    weights = [_number(number, text) for number in numbers.split(",")]
    if not step.isdecimal() or int(step) < 1:
        raise ValueError(f"{text!r} does not begin with a step of 1 or more")
    if len(weights) != sources or not any(weights):
        raise ValueError(f"{text!r} needs {sources} weights, not all of them 0, in their order")
    return int(step), weights


def mistakes(sources: Sequence[str], changes: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield every mistake in the two mixture fields: the field, and a message for the user."""
    read, steps = [], [0]
    for text in sources:
        try:
            read.append(parse_source(text))
        except ValueError as error:
            yield "mixture", f"must be DIR=WEIGHT or DIR=WEIGHT:EPOCHS: {error}"
    if len({os.path.realpath(source.path) for source in read}) < len(read):
        yield "mixture", f"names a directory twice: {', '.join(source.path for source in read)}"
    if read and not any(source.weight for source in read):
        yield "mixture", "needs at least one weight above 0"
    if changes and not sources:
        yield "mixture_changes", "needs data.mixture, whose weights it changes"
        return
    for text in changes:
        try:
            steps.append(parse_change(text, len(sources))[0])
        except ValueError as error:
            yield "mixture_changes", f"must be STEP=WEIGHT,WEIGHT,...: {error}"
    if steps != sorted(set(steps)):
        yield "mixture_changes", f"must come at increasing steps, not at {steps[1:]}"


def _number(text: str, whole: str) -> Fraction:
    # an exponent of more digits would take for ever, or overflow a float
    number = Fraction(text) if re.fullmatch(r"\d+(\.\d*)?(e[+-]?\d\d?)?", text, re.ASCII) else -1
    if number < 0:
        raise ValueError(f"{whole!r}: {text!r} is not a number of 0 or more, such as 30 or 0.5")
    return Fraction(number)


def _positive(text: str, whole: str) -> Fraction:
    if not (number := _number(text, whole)):
        raise ValueError(f"{whole!r}: {text!r} must be above 0")
    return number


def parse_evaluation(text: str) -> tuple[str, str]:
    """Read NAME=FILE, a test of `TESTS` and its data; raises ValueError with the mistake.

    >>> parse_evaluation("lambada=data/lambada_test.jsonl")
    ('lambada', 'data/lambada_test.jsonl')
    """
    name, _, file = text.partition("=")
    if name not in TESTS or not file:
        names = ", ".join(TESTS)
        raise ValueError(f"must be NAME=FILE with a NAME of {names}, not {text!r}")
    return name, file


def evaluation_mistakes(texts: Sequence[str]) -> Iterator[str]:
    """Yield every mistake in a list of NAME=FILE, as a message for the user."""
    names = []
    for text in texts:
        try:
            names.append(parse_evaluation(text)[0])
        except ValueError as error:
            yield str(error)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        yield f"names a test twice: {', '.join(twice)}"


def profile_window(text: str) -> tuple[int, int] | None:
    """Read STEP:COUNT; None if it is something else.

    >>> profile_window("20:5")
    (20, 5)
    """
    step, _, count = text.partition(":")
    numbers = [int(n) if n.isdecimal() and len(n) < 16 else -1 for n in (step, count)]
    return None if numbers[0] < 0 or numbers[1] < 1 else (numbers[0], numbers[1])


def is_tokenizer_name(name: str) -> bool:
    """Whether `name` has the form of a tokenizer name: known, bpe:N, tiktoken:ENCODING, *.json.

    The existence of the encoding or file is not checked.
    """
    kind, _, rest = name.partition(":")
    if kind == "bpe":
        return rest.isdecimal() and rest.isascii() and rest[0] != "0" and int(rest) >= 257
    return name in TOKENIZERS or (kind == "tiktoken" and bool(rest)) or name.endswith(".json")


def how_to_prepare_for(model: str, tokenizer: str | None) -> str:
    """Advice how to prepare data for the model to start from; its tokenizer may have no name.

    >>> how_to_prepare_for("runs/x", "gpt2")
    'prepare text with --tokenizer gpt2, and give its --data.path'
    """
    if tokenizer is not None:
        return f"prepare text with --tokenizer {shlex.quote(tokenizer)}, and give its --data.path"
    return (
        f"convert the model with `python -m gptjax.convert --from {shlex.quote(model)} --out RUN`, "
        "then prepare text with --tokenizer RUN/tokenizer.json, and give its --data.path"
    )
