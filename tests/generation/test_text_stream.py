"""A stream of tokens says what its whole text says, cut at a stop text, and as early as it can."""

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gptjax.generation.texts import TextStream
from gptjax.tokenizers.bpe import BPETokenizer, gpt2
from gptjax.tokenizers.plain import ByteTokenizer, collect_characters


class Pieces:
    """A tokenizer whose token i is the i-th of the given byte strings."""

    def __init__(self, *pieces: bytes):
        self.pieces = pieces

    def token_bytes(self, token: int) -> bytes:
        """The piece itself."""
        return self.pieces[token]


def stream_of(*pieces: str | bytes, stop: tuple[str, ...] = ()) -> tuple[list[str], TextStream]:
    """What every token of a text returns, and at last `finish`."""
    cut = [piece.encode() if isinstance(piece, str) else piece for piece in pieces]
    stream = TextStream(Pieces(*cut), stop)  # pyright: ignore[reportArgumentType]
    texts = [stream.push(token) for token in range(len(cut))]
    return [*texts, stream.finish()], stream


def cut_at_stop(text: str, stop: tuple[str, ...]) -> tuple[str, bool]:
    """The definition: read on until a stop text is complete; the text before it, and whether."""
    for end in range(1, len(text) + 1):
        if met := [len(s) for s in stop if text[:end].endswith(s)]:
            return text[: end - max(met)], True
    return text, False


letters = st.text("ab\n é", max_size=14)
stops = st.lists(st.text("ab\n é", min_size=1, max_size=4), max_size=3).map(tuple)


@given(letters, stops, st.data())
@example("abcd", ("abcd", "c"), None)
@example("aab", ("ab", "aab"), None)
def test_any_cut_into_tokens_gives_the_text_before_the_stop(text, stop, data):
    whole = text.encode()
    places = st.sets(st.integers(0, len(whole)))
    cuts = sorted(data.draw(places) | {0, len(whole)}) if data else range(len(whole) + 1)
    pieces = [whole[a:b] for a, b in pairwise(cuts)]
    texts, stream = stream_of(*pieces, stop=stop)
    assert ("".join(texts), stream.stopped) == cut_at_stop(text, stop)


@given(letters, stops)
def test_only_what_could_begin_a_stop_text_is_held_back(text, stop):
    stream = TextStream(collect_characters("ab\n é"), stop)
    said, length = "", 0
    for token in collect_characters("ab\n é").encode(text).tolist():
        said, length = said + stream.push(token), length + 1
        if stream.stopped:
            return
        held = text[len(said) : length]
        assert text[:length] == said + held
        assert held == "" or any(s.startswith(held) and s != held for s in stop)
        longer = [text[i:length] for i in range(len(said))]
        assert not any(s.startswith(end) for s in stop for end in longer)


@given(st.lists(st.binary(max_size=4), max_size=8))
def test_any_bytes_become_the_text_that_decoding_them_gives(pieces):
    texts, _ = stream_of(*pieces)
    assert "".join(texts) == b"".join(pieces).decode("utf-8", "replace")


def test_a_character_comes_with_its_last_byte():
    assert stream_of(b"a\xe2", b"\x86", b"\x92b")[0] == ["a", "", "→b", ""]


def test_a_character_cut_short_becomes_one_replacement_character():
    assert stream_of(b"a\xe2\x86")[0] == ["a", "�"]


@pytest.mark.parametrize(
    ("pieces", "stop", "expected"),
    [
        (["a", "b", "c"], ("bc",), ["a", "", "", ""]),  # over two tokens
        (["xxbcyy", "z"], ("bc",), ["xx", "", ""]),  # inside one token; then nothing more
        (["a", "b", "d"], ("bc",), ["a", "", "bd", ""]),  # released as soon as it is none
        (["a", "b"], ("bc",), ["a", "", "b"]),  # or at the end
        (["aab", "c"], ("aabx", "abc"), ["", "a", ""]),  # the other one goes on
        (["b", "b", "b", "c"], ("bbc",), ["", "", "b", "", ""]),
        (["xcab"], ("ab", "ca"), ["x", ""]),  # the first to be complete
        (["xabc"], ("bc", "abc"), ["x", ""]),  # the longest of those that end together
        (["x", "\n", "\n"], ("\n\n",), ["x", "", "", ""]),
        ([b"\xe2\x86", b"\x92"], ("→",), ["", "", ""]),
        ([b"a\xe2", b""], ("\ufffd",), ["a", "", ""]),
        (["", "a", ""], ("b",), ["", "a", "", ""]),
    ],
)
def test_stop_texts_end_the_text_and_are_never_part_of_it(pieces, stop, expected):
    texts, stream = stream_of(*pieces, stop=stop)
    assert texts == expected
    assert stream.stopped == (cut_at_stop(b"".join(
        p if isinstance(p, bytes) else p.encode() for p in pieces
    ).decode("utf-8", "replace"), stop)[1])  # fmt: skip


def test_nothing_follows_a_stop_text():
    texts, stream = stream_of("a.", "b", "c", stop=(".",))
    assert texts == ["a", "", "", ""]
    assert stream.stopped
    assert stream.finish() == ""


def test_end_of_text_says_nothing():
    tokenizer = ByteTokenizer()
    stream = TextStream(tokenizer)
    assert [stream.push(token) for token in [*b"ab", tokenizer.eot_id]] == ["a", "b", ""]


def test_gpt2s_tokens_give_their_text(test_data, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(test_data / "tiktoken_cache"))
    tokenizer: BPETokenizer = gpt2()
    text = "A naïve 𝄞 of 東京.\n\nUser: no"
    stream = TextStream(tokenizer, stop=["\nUser:", "never"])
    said = "".join([*map(stream.push, tokenizer.encode(text).tolist()), stream.finish()])
    assert said == "A naïve 𝄞 of 東京.\n"
