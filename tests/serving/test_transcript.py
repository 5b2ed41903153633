"""The text of drawn tokens, the tokens behind each piece of it, and their places."""

import random

import pytest

from gptjax.generation.requests import Token
from gptjax.serving.responses import TokenTexts, logprobs_of
from gptjax.serving.transcript import Transcript
from gptjax.tokenizers.bpe import BPETokenizer
from gptjax.tokenizers.plain import ByteTokenizer

BYTES = ByteTokenizer()
WORDS = ["naïve ", "日本 ", "😀", "end", "\n", "E", "N"]


def drawn(text: str) -> list[Token]:
    return [Token(int(i), -1.0) for i in BYTES.encode(text)]


def told(tokens: list[Token], stop: tuple[str, ...], finish: str, chunk: int):
    """All pieces of a sequence that comes in chunks."""
    transcript, pieces = Transcript(BYTES, stop), []
    for start in range(0, len(tokens), chunk):
        is_last = start + chunk >= len(tokens)
        pieces.append(transcript.hear(tokens[start : start + chunk], finish if is_last else None))
        if pieces[-1].finish:
            break
    return pieces


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1000])
def test_pieces_are_the_text_and_tokens_follow_it(chunk):
    chance = random.Random(chunk)
    for _ in range(30):
        text = "".join(chance.choices(WORDS, k=chance.randint(1, 12)))
        tokens = drawn(text)
        pieces = told(tokens, (), "length", chunk)
        assert "".join(piece.text for piece in pieces) == text
        spoken = [place for piece in pieces for place in piece.tokens]
        assert [place.token for place in spoken] == tokens
        raw = text.encode()
        for number, place in enumerate(spoken):
            assert place.offset == len(raw[:number].decode(errors="ignore"))
        assert pieces[-1].finish == "length"
        assert pieces[-1].drawn == len(tokens)


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_nothing_of_a_stop_text_or_after_it_is_shown(chunk):
    pieces = told(drawn("one two 日END three"), ("END", "ND three"), "length", chunk)
    assert "".join(piece.text for piece in pieces) == "one two 日"
    assert pieces[-1].finish == "stop"
    spoken = [place.token for piece in pieces for place in piece.tokens]
    assert spoken == drawn("one two 日")
    assert pieces[-1].drawn >= len(drawn("one two 日END"))


def test_tokens_wait_for_their_text():
    transcript = Transcript(BYTES, ("END",))
    assert transcript.hear(drawn("aE"), None)[:2] == ("a", ((drawn("a")[0], 0),))
    held = transcript.hear(drawn("N"), None)
    assert (held.text, held.tokens) == ("", ())
    freed = transcript.hear(drawn("x"), None)
    assert (freed.text, [place.offset for place in freed.tokens]) == ("ENx", [1, 2, 3])


def test_a_stop_token_is_the_last_one_and_has_no_text():
    tokens = [*drawn("ab"), Token(BYTES.eot_id, -2.0)]
    piece = Transcript(BYTES).hear(tokens, "stop")
    assert (piece.text, piece.finish, piece.drawn) == ("ab", "stop", 3)
    assert piece.tokens[-1] == (Token(BYTES.eot_id, -2.0), 2)


def test_half_a_character_at_the_end_is_marked():
    piece = Transcript(BYTES).hear(drawn("日")[:2], "length")
    assert (piece.text, len(piece.tokens)) == ("\ufffd", 2)


def test_token_texts_are_those_of_openai():
    texts = TokenTexts(BYTES)
    assert [texts(i) for i in (65, 0xC3, 256)] == ["A", "bytes:\\xc3", "<|endoftext|>"]


def test_no_alternative_is_lost_and_the_drawn_token_is_among_them():
    ranks = {bytes([i]): i for i in range(256)}
    tokenizer = BPETokenizer("gpt2", ranks, eot_id=300, n_vocab=301)  # 256 to 299 have no text
    texts = TokenTexts(tokenizer)
    top = ((300, -0.5), (270, -1.0), (65, -2.0), (271, -3.0))
    assert texts.top(Token(271, -3.0, top), 2) == {
        "<|endoftext|>": -0.5, "token_id:270": -1.0, "token_id:271": -3.0,
    }  # fmt: skip
    assert texts.top(Token(65, float("-inf"), ()), 5) == {"A": -9999.0}
    # a higher value of the drawn token than its entry would look like a greedy token
    assert list(texts.top(Token(300, -0.5000001, top), 1).values()) == [-0.5000001]


def test_the_first_token_of_a_prompt_has_no_log_probability():
    piece = Transcript(BYTES).hear([Token(65, float("nan")), Token(66, -1.0)], "length")
    lists = logprobs_of(TokenTexts(BYTES), piece.tokens, 1)
    assert lists == {
        "tokens": ["A", "B"],
        "token_logprobs": [None, -1.0],
        "top_logprobs": [None, {"B": -1.0}],
        "text_offset": [0, 1],
    }
