"""GPT-2's way of writing bytes as characters, and its merges from ranks and back.

In vocab.json and merges.txt every byte is a printable character, so that tokens are text without
blanks (`bytes_to_unicode` of OpenAI's encoder.py, Radford et al. 2019). tiktoken has no merges: it
joins the pair whose result has the lowest rank. Each token comes from one pair only, because what
lies inside a token is always joined in the same order, so the pair can be found again.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

Merge = tuple[str, str]

# bytes that are printable in Latin-1 stand for themselves
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
_CHARACTERS = dict(zip(_PRINTABLE, map(chr, _PRINTABLE), strict=True)) | {
    byte: chr(256 + i) for i, byte in enumerate(_OTHERS)
}
_BYTES = {character: byte for byte, character in _CHARACTERS.items()}


def bytes_as_text(token: bytes) -> str:
    """The bytes of a token as GPT-2's files write them.

    >>> bytes_as_text(b" hello")
    'Ġhello'
    """
    return "".join(_CHARACTERS[byte] for byte in token)


def text_as_bytes(token: str) -> bytes:
    """The bytes behind a token of GPT-2's files; raises `KeyError` for any other character.

    >>> text_as_bytes("Ġhello")
    b' hello'
    """
    return bytes(_BYTES[character] for character in token)


def split_token(token: bytes, ranks: Mapping[bytes, int]) -> list[bytes]:
    """The parts of a token before its last merge: two, or more if no merge ever makes it.

    >>> split_token(b"abc", {b"a": 0, b"b": 1, b"c": 2, b"bc": 3, b"abc": 4})
    [b'a', b'bc']
    """
    parts, highest = [bytes([byte]) for byte in token], ranks[token]
    while len(parts) > 2:
        found = [ranks.get(first + second, highest) for first, second in pairwise(parts)]
        lowest = min(found)
        if lowest >= highest:
            break
        i = found.index(lowest)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def merges_of_ranks(ranks: Mapping[bytes, int]) -> tuple[list[Merge], bool]:
    """The merges of a table of ranks, in order, and whether they make every token.

    tiktoken finds a token that no merge makes only where it is a whole word.

    >>> letters = {b"a": 0, b"b": 1, b"ab": 2}
    >>> merges_of_ranks(letters), merges_of_ranks(letters | {b"bab": 3, b"aba": 4, b"aa b": 5})
    (([('a', 'b')], True), ([('a', 'b'), ('b', 'ab'), ('ab', 'a')], False))
    """
    merges, is_whole = [], True
    for token in sorted((t for t in ranks if len(t) > 1), key=ranks.__getitem__):
        first, second, *more = split_token(token, ranks)
        if more or first not in ranks or second not in ranks:
            is_whole = False
        else:
            merges.append((bytes_as_text(first), bytes_as_text(second)))
    return merges, is_whole


def read_merges(lines: Iterable[str | Sequence[str]]) -> list[Merge]:
    """Merges as any file writes them: `"a b"` or `["a", "b"]`; raises `ValueError` otherwise.

    >>> read_merges(["a b", ["ab", "c"]])
    [('a', 'b'), ('ab', 'c')]
    """
    merges = []
    for line in lines:
        pair = line.split(" ") if isinstance(line, str) else list(line)
        if len(pair) != 2 or not all(isinstance(part, str) and part for part in pair):
            raise ValueError(f"{line!r} is not a merge: expected two tokens")
        merges.append((pair[0], pair[1]))
    return merges


def ranks_of_merges(vocab: Mapping[str, int], merges: Sequence[Merge]) -> dict[bytes, int]:
    """The table of ranks that joins as the merges do: each token's id is its rank.

    Only a vocabulary whose ids grow in the order of its merges is such a table, as that of every
    trained byte-level BPE is. Raises `ValueError` that says what is different.
    """
    pairs: dict[str, set[Merge]] = {}
    for first, second in merges:
        pairs.setdefault(first + second, set()).add((first, second))
    if missing := [token for token in pairs if token not in vocab]:
        raise ValueError(f"a merge makes {missing[0]!r}, which has no id")
    made = [vocab[first + second] for first, second in merges]
    if any(before > after for before, after in pairwise(made)):
        raise ValueError("its ids do not grow in the order of its merges, as tiktoken needs")
    try:
        ranks = {text_as_bytes(token): i for token, i in vocab.items()}
    except KeyError as error:
        raise ValueError(f"its tokens are not bytes: {error} stands for none") from error
    if without := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise ValueError(f"{len(without)} of 256 bytes have no token, such as {without[0]:#04x}")
    for token, found in pairs.items():
        parts = tuple(map(bytes_as_text, split_token(text_as_bytes(token), ranks)))
        if parts not in found:
            raise ValueError(f"its merges make {token} in another order than its ids")
    return ranks
