"""Cuts English into words as spaCy's tokenizer does, because GPT-1 was trained on those words.

The rules restate those of spaCy 3's English tokenizer: prefixes, suffixes and infixes of
punctuation, and a table of contractions and abbreviations. They assume that GPT-1's standardisation
has already put blanks around most punctuation. spaCy itself would add 100 MB of dependencies.
Abbreviated months and American states, rarer titles, and emoticons that standardisation takes apart
anyway are left out; `gptjax.tokenizers.gpt1` reports the difference in ids.
"""
# ruff: noqa: RUF001 - this file tells apart signs that look alike

from collections.abc import Iterator
from itertools import product

import regex

_PUNCTUATION = r"…|,|:|;|!|\?|¿|؟|¡|[()\[\]{}<>_#*&]|[。？！，、；：～·।،۔؛٪]"
_QUOTES = r"'|\"|[”“`‘´’‚„»«「」『』（）〔〕【】《》〈〉⟦⟧]"
_ELLIPSIS = r"\.\.+|…"
_CURRENCY = r"US\$|C\$|A\$|\p{Sc}"
_UNITS = r"(?:[kdcm]?m[²³]?|ha|[µn]m|yd|in|ft|[kmµ]?g|t|lb|oz|kmh|mph|h?Pa|mbar|[mkgt]b|[MKGT]B?|%)"
_PREFIX = regex.compile(
    rf"§|%|=|\+(?![0-9])|{_PUNCTUATION}|{_ELLIPSIS}|{_QUOTES}|{_CURRENCY}|\p{{So}}"
)
_SUFFIX = regex.compile(
    rf"(?:{_PUNCTUATION}|{_ELLIPSIS}|{_QUOTES}|\p{{So}}|['’][sS]|(?<=[0-9])\+|"
    rf"(?<=[0-9])(?:{_CURRENCY})|(?<=[0-9]){_UNITS}|"
    rf"(?<=[0-9\p{{Ll}}\p{{Lo}}%²\-+]|{_PUNCTUATION}|{_QUOTES})\.|(?<=\p{{Lu}}\p{{Lu}})\.)$"
)
_INFIX = regex.compile(
    rf"{_ELLIPSIS}|\p{{So}}|(?<=[0-9])[+\-*^](?=[0-9-])|"
    rf"(?<=[\p{{Ll}}\p{{Lo}}]|{_QUOTES})\.(?=[\p{{Lu}}\p{{Lo}}]|{_QUOTES})|"
    r"(?<=\p{L}),(?=\p{L})|(?<=[\p{L}0-9])(?:-|–|—|~)(?=\p{L})|(?<=[\p{L}0-9])[:<>=/](?=\p{L})"
)
_ADDRESS = regex.compile(  # a web or mail address
    r"(?:\S+@)?(?:[A-Za-z0-9\u00a1-\uffff][\w\u00a1-\uffff-]*\.)+\p{Ll}{2,63}"
    r"(?::\d{2,5})?(?:[/?#]\S*)?"
)


_QUESTIONS = ("who", "what", "when", "where", "why", "how", "there")


def _contractions() -> Iterator[tuple[str, ...]]:
    """Parts of every contraction in lower case, with and without its apostrophe."""
    plain = {
        "i": "m ma ll ll've d d've ve",
        **dict.fromkeys(("you", "we", "they"), "ll ll've d d've ve re"),
        **dict.fromkeys(("he", "she", "it"), "ll ll've d d've s"),
        **dict.fromkeys(_QUESTIONS, "s ll ll've re ve d d've"),
        **dict.fromkeys(("that", "this"), "s ll ll've d d've"),
        **dict.fromkeys(("these", "those"), "ll ll've re ve d d've"),
        **dict.fromkeys(("could", "might", "must", "should", "would"), "ve"),
    }
    for word, endings in plain.items():
        for ending in endings.split():
            first, _, second = ending.partition("'")
            first, second = ("m", "a") if ending == "ma" else (first, second)
            inner = "'" if second == "ve" else ""
            yield tuple(filter(None, (word, f"'{first}", f"{inner}{second}")))
            yield tuple(filter(None, (word, first, second)))
    negated = "ca could do does did had may might must need ought sha should wo would"
    for word in negated.split():
        yield from ((word, "n't"), (word, "nt"), (word, "n't", "'ve"), (word, "nt", "ve"))
    for word in ("ai", "are", "is", "was", "were", "have", "has", "dare"):
        yield from ((word, "n't"), (word, "nt"))
    yield from (("can", "not"), ("gon", "na"), ("got", "ta"), ("let", "'s"), ("c'm", "on"))
    yield from (("not", "'ve"), ("not", "ve"), ("how", "'d", "'y"))


_AS_ONE = """
' '' 's 'S 'd 're 'em 'll 'nuff 'cause 'Cause 'cos 'Cos 'coz 'Coz 'cuz 'Cuz 'bout and/or w/o ma'am
Ma'am o'clock O'clock lovin' Lovin' havin' Havin' doin' Doin' goin' Goin' nothin' Nothin' nuthin'
Nuthin' ol' Ol' somethin' Somethin' a.m. p.m. e.g. E.g. E.G. i.e. I.e. I.E. vs. v.s. Dr. Jr. Mr.
Mrs. Ms. Messrs. Prof. Rev. Gen. Gov. St. Mt. Co. co. Inc. Ltd. Ph.D. D.C. N.Y. <3 <33 <333 :> >.>
>.< <.< O.O o.0 0.o 0.0 O.o o.O o.o :o :O >:o :p :P :x :X :D =D XD xD XDD xDD 8D :0 :1 :3 =3 v.v V.V
"""
_LETTERS = "abcdefghijklmnopqrstuvwxyzäöü"  # an initial keeps its full stop
# words that only look like a contraction without its apostrophe
_NO_CONTRACTIONS = ("ill", "its", "hell", "shell", "shed", "were", "well", "whore")


def _special_cases() -> dict[str, tuple[str, ...]]:
    cases: dict[str, tuple[str, ...]] = {word: (word,) for word in _AS_ONE.split()}
    cases |= {f"{letter}.": (f"{letter}.",) for letter in _LETTERS}
    for parts in _contractions():
        if "".join(parts) not in _NO_CONTRACTIONS:
            cases["".join(parts)] = parts
            cases["".join(parts).capitalize()] = (parts[0].capitalize(), *parts[1:])
    cases |= {"y'all": ("y'", "all"), "yall": ("y", "all")}
    for hour, half in product(range(1, 13), ("a.m.", "am", "p.m.", "pm")):
        cases[f"{hour}{half}"] = (f"{hour}", half)
    return cases


_SPECIAL = _special_cases()


def words_of(chunk: str) -> list[str]:
    """Cut text without blanks into words: peel punctuation off both ends, then cut at infixes.

    >>> words_of("(stop).")
    ['(', 'stop', ')', '.']
    """
    before: list[str] = []
    after: list[str] = []
    while chunk and chunk not in _SPECIAL:
        prefix = match[0] if (match := _PREFIX.match(chunk)) else ""
        if prefix and chunk[len(prefix) :] in _SPECIAL:
            before, chunk = [*before, prefix], chunk[len(prefix) :]
            break
        suffix = match[0] if (match := _SUFFIX.search(chunk, len(prefix))) else ""
        rest = chunk[: len(chunk) - len(suffix)]
        if suffix and rest in _SPECIAL:
            after, chunk = [suffix, *after], rest
            break
        if not prefix and not suffix:
            break
        before += [prefix] if prefix else []
        after = [suffix, *after] if suffix else after
        chunk = rest[len(prefix) :]
    if chunk in _SPECIAL:
        inside = list(_SPECIAL[chunk])
    elif not chunk or _ADDRESS.fullmatch(chunk):
        inside = [chunk] if chunk else []
    else:
        inside = _cut_inside(chunk)
    return [*before, *inside, *after]


def _cut_inside(chunk: str) -> list[str]:
    words, start = [], 0
    for match in _INFIX.finditer(chunk):
        if match.start() == start:  # spaCy does not cut at an infix at the very beginning
            continue
        words += [chunk[start : match.start()], match[0]]
        start = match.end()
    return [*words, chunk[start:]] if start < len(chunk) else words
