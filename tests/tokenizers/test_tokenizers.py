"""Tokenizers give back every text, agree with independent BPEs, and never need a network."""

import base64
import itertools
import json
import re
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import regex
import requests
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gptjax.base.errors import UserError
from gptjax.tokenizers.bpe import EOT, GPT2_PATTERN, BPETokenizer, gpt2, train_bpe
from gptjax.tokenizers.plain import ByteTokenizer, CharTokenizer, collect_characters
from gptjax.tokenizers.registry import (
    bytes_per_token,
    fingerprint,
    make_tokenizer,
    tokenizer_from_json,
    tokenizer_identity,
)

# sha1 of the addresses tiktoken fetches GPT-2's two files from: the names in its cache
CACHE_NAMES = {
    "vocab.bpe": "6d1cbeee0f20b3d9449abfede4726ed8212e3aee",
    "encoder.json": "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6",
}
# of OpenAI's encoder.py
PUBLISHED_PATTERN = (
    r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
)
CORPUS = (
    """\
She sells sea-shells on the sea-shore,  and the shells she sells\n\n\tare sea-shells for sure.\r
It's 1234, 1234.5 or 12345\u00a0km; we'll see, they've said:
déjà vu, déjà là, 漢字漢字 🙂🙂 🙂\x00\x00
    if the shells:\n        sell(the, sea)\n        return  the sea\n\n\n
"""
    * 4
)
ODD_TEXT = (
    "Hello world\0 \r\n\t\n  it's 1234.5 \u00bd e\u0301\u00e9 \ufb01 漢字かな 🙂"
    " \U0001f3f3\ufe0f\u200d\U0001f308 \ufeff\u2028\x85\u00a0 '' 'll  "
)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise requests.ConnectionError("no network")

    monkeypatch.setattr(requests, "get", refuse)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("DATA_GYM_CACHE_DIR", raising=False)
    monkeypatch.delenv("GPTJAX_GPT2_BPE", raising=False)


@pytest.fixture(scope="module")
def trained() -> BPETokenizer:
    return train_bpe([CORPUS], 320)


@pytest.fixture(scope="module")
def gpt2_files(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("gpt2")
    for name, cached in CACHE_NAMES.items():
        shutil.copyfile(test_data / "tiktoken_cache" / cached, directory / name)
    return directory


@pytest.fixture(scope="module")
def published(gpt2_files: Path) -> BPETokenizer:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", "")
        return gpt2(gpt2_files)


@pytest.fixture(params=["bytes", "trained", "published"])
def tokenizer(request: pytest.FixtureRequest) -> ByteTokenizer | BPETokenizer:
    return ByteTokenizer() if request.param == "bytes" else request.getfixturevalue(request.param)


def naive_ids(ranks: dict[bytes, int], text: str) -> list[int]:
    """Sennrich et al.'s loop: in every pre-token join the adjacent pair of lowest rank."""
    ids = []
    for word in regex.findall(PUBLISHED_PATTERN, text):
        parts = [bytes([b]) for b in word.encode()]
        while pairs := [(ranks[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(parts))
                        if a + b in ranks]:  # fmt: skip
            _, i = min(pairs)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        ids += [ranks[part] for part in parts]
    return ids


@example(text=ODD_TEXT)
@example(text="\ud800 \udfff \ud83d\ude00")
@example(text=f"{EOT}a{EOT} <|endoftext|")
@example(text="")
@given(text=st.text(st.characters(exclude_categories=())))
@settings(deadline=None, derandomize=True)
def test_any_text_comes_back_and_half_surrogates_as_question_marks(
    trained: BPETokenizer, text: str
):
    alphabet = collect_characters([text, "a"])
    for tokenizer in (ByteTokenizer(), alphabet, trained):
        ids = tokenizer.encode(text)
        assert ids.ndim == 1
        assert np.issubdtype(ids.dtype, np.unsignedinteger)
        assert all(ids < tokenizer.eot_id)
        assert tokenizer.decode(ids) == re.sub("[\ud800-\udfff]", "?", text)


def test_gpt2_gives_back_all_kinds_of_text(published: BPETokenizer, test_data: Path):
    for text in (ODD_TEXT, f"a{EOT}b", (test_data / "tinyshakespeare.txt").read_text()):
        ids = published.encode(text)
        assert published.eot_id not in ids
        assert published.decode(ids) == text


def test_the_last_id_is_end_of_text_which_stands_for_nothing(tokenizer):
    assert tokenizer.n_vocab == tokenizer.eot_id + 1
    assert tokenizer.token_bytes(tokenizer.eot_id) == b""
    ids = [*tokenizer.encode("one"), tokenizer.eot_id, *tokenizer.encode("two")]
    assert tokenizer.decode(ids) == "onetwo"


def test_every_id_is_a_different_string_of_bytes_and_single_bytes_are_all_there(tokenizer):
    table = [tokenizer.token_bytes(i) for i in range(tokenizer.n_vocab)]
    assert len(set(table)) == len(table)
    assert {bytes([b]) for b in range(256)} <= set(table)


def test_bytes_that_are_no_utf8_are_decoded_as_replacement(tokenizer):
    table = [tokenizer.token_bytes(i) for i in range(tokenizer.n_vocab)]
    ids = [table.index(b"a"), table.index(b"\xff"), table.index(b"\xc3"), table.index(b"b")]
    assert tokenizer.decode(ids) == "a\ufffd\ufffdb"


def test_bytes_per_token_adds_up_to_the_text(tokenizer):
    lengths = bytes_per_token(tokenizer)
    assert lengths.shape == (tokenizer.n_vocab,)
    assert lengths[tokenizer.encode(ODD_TEXT)].sum() == len(ODD_TEXT.encode())
    assert lengths[tokenizer.eot_id] == 0


@example(text="I'll see it's we've they're I'd I'm don't 'tis O'Neil we'LL")
@example(text=ODD_TEXT)
@given(text=st.text(alphabet="shelsvrdtm -,\n\r\t'.1\u00a0é漢🙂"))
@settings(deadline=None, derandomize=True, max_examples=300)
def test_a_trained_bpe_agrees_with_the_naive_loop(trained: BPETokenizer, text: str):
    assert regex.findall(GPT2_PATTERN, text) == regex.findall(PUBLISHED_PATTERN, text)
    assert trained.encode(text).tolist() == naive_ids(trained.ranks, text)


def test_gpt2_agrees_with_the_published_ids_and_with_hugging_face(
    published: BPETokenizer, gpt2_files: Path, test_data: Path
):
    assert (published.n_vocab, published.eot_id) == (50257, 50256)
    assert published.encode("Hello world").tolist() == [15496, 995]
    # by a module of it, because this very folder is called like the package
    implementations = pytest.importorskip("tokenizers.implementations")
    paths = [str(gpt2_files / name) for name in ("encoder.json", "vocab.bpe")]
    reference = implementations.ByteLevelBPETokenizer.from_file(*paths)
    play = (test_data / "tinyshakespeare.txt").read_text()[:200_000]
    for text in (play, ODD_TEXT):
        assert published.encode(text).tolist() == reference.encode(text).ids


def test_gpt2_is_the_same_from_files_and_from_the_cache_of_tiktoken(
    published: BPETokenizer, gpt2_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cache = tmp_path / "cache"
    cache.mkdir()
    for name, cached in CACHE_NAMES.items():
        shutil.copyfile(gpt2_files / name, cache / cached)
    from_cache = make_tokenizer("gpt2")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "other"))
    monkeypatch.setenv("GPTJAX_GPT2_BPE", str(gpt2_files))
    from_files = make_tokenizer("gpt2")
    for made in (from_cache, from_files):
        assert fingerprint(made) == fingerprint(published)
        assert made.encode(ODD_TEXT).tolist() == published.encode(ODD_TEXT).tolist()


def test_gpt2_without_files_or_network_says_which_two_settings_help():
    with pytest.raises(UserError) as caught:
        make_tokenizer("gpt2")
    assert "TIKTOKEN_CACHE_DIR" in str(caught.value)
    assert "GPTJAX_GPT2_BPE" in str(caught.value)


def test_gpt2_behind_a_portal_that_answers_everything_says_which_two_settings_help(
    monkeypatch: pytest.MonkeyPatch,
):
    page = SimpleNamespace(content=b"<html>please log in</html>", raise_for_status=lambda: None)
    monkeypatch.setattr(requests, "get", lambda *_, **__: page)
    with pytest.raises(UserError, match=r"TIKTOKEN_CACHE_DIR(.|\n)*GPTJAX_GPT2_BPE"):
        make_tokenizer("gpt2")


@pytest.mark.parametrize(
    "missing", [["vocab.bpe"], ["encoder.json"], ["vocab.bpe", "encoder.json"]]
)
def test_gpt2_files_that_are_missing_are_all_named(tmp_path: Path, missing: list[str]):
    for name in CACHE_NAMES.keys() - set(missing):
        (tmp_path / name).write_text("")
    with pytest.raises(UserError) as caught:
        gpt2(tmp_path)
    named = [name for name in CACHE_NAMES if str(tmp_path / name) in str(caught.value)]
    assert named == missing


def test_gpt2_files_that_were_wrong_are_named_and_once_replaced_are_read_again(
    gpt2_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("GPTJAX_GPT2_BPE", str(tmp_path))
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\ns h\n")
    (tmp_path / "encoder.json").write_text("{}")
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "vocab.bpe"))):
        make_tokenizer("gpt2")
    for name in CACHE_NAMES:
        shutil.copyfile(gpt2_files / name, tmp_path / name)
    assert make_tokenizer("gpt2").n_vocab == 50257


def test_gpt2_files_of_another_size_are_refused(tmp_path: Path, trained: BPETokenizer):
    printable = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    others = [b for b in range(256) if b not in printable]
    letters = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
    table = {letters[b]: i for i, b in enumerate([*printable, *others])} | {"sh": 256}
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\ns h\n")
    (tmp_path / "encoder.json").write_text(json.dumps(table))
    with pytest.raises(UserError, match=r"257 tokens, expected 50256"):
        gpt2(tmp_path)


def test_json_makes_the_same_tokenizer_again(tokenizer):
    again = tokenizer_from_json(tokenizer.to_json(), "tokenizer.json")
    assert (again.name, again.n_vocab, again.eot_id) == (
        tokenizer.name,
        tokenizer.n_vocab,
        tokenizer.eot_id,
    )
    assert fingerprint(again) == fingerprint(tokenizer)
    assert again.encode(ODD_TEXT).tolist() == tokenizer.encode(ODD_TEXT).tolist()
    assert again.to_json() == tokenizer.to_json()


def test_fingerprints_tell_tables_apart_and_ignore_names(trained: BPETokenizer):
    swapped = dict(trained.ranks)
    first, second = list(swapped)[-2:]
    swapped[first], swapped[second] = swapped[second], swapped[first]
    different = [
        ByteTokenizer(),
        trained,
        train_bpe([CORPUS], 319),
        BPETokenizer(trained.name, swapped),
        BPETokenizer(trained.name, trained.ranks, pattern=r"\S+|\s+"),
        CharTokenizer("ab"),
        CharTokenizer("abc"),
    ]
    assert len({fingerprint(t) for t in different}) == len(different)
    assert all(re.fullmatch("[0-9a-f]{16}", fingerprint(t)) for t in different)
    assert fingerprint(BPETokenizer("renamed", trained.ranks)) == fingerprint(trained)


def table_of(*tokens: bytes) -> str:
    encoded = [base64.b64encode(token).decode() for token in tokens]
    return json.dumps({"name": "bpe:300", "pattern": PUBLISHED_PATTERN, "tokens": encoded})


@pytest.mark.parametrize(
    "garbage",
    [
        "",
        '{"name": "bpe:300", "tok',
        "[]",
        "null",
        "{}",
        '{"name": "bpe:300"}',
        '{"name": "bpe:300", "pattern": ".", "tokens": ["A"]}',
        '{"name": "bpe:300", "pattern": ".", "tokens": 7}',
        '{"name": "chars"}',
        '{"name": "bpe:300", "pattern": "", "tokens": []}',
        pytest.param("[" * 100_000, id="nested too deeply"),
        pytest.param(table_of(b"a", b"b"), id="not all 256 bytes"),
    ],
)
def test_a_garbage_tokenizer_file_is_named(garbage: str):
    with pytest.raises(UserError, match=r"some/tokenizer\.json is not a tokenizer file"):
        tokenizer_from_json(garbage, "some/tokenizer.json")


def test_training_is_deterministic_and_gives_exactly_the_size_asked_for():
    made = [train_bpe(CORPUS.splitlines(keepends=True), 300) for _ in range(5)]
    assert len({tokenizer.to_json() for tokenizer in made}) == 1
    assert (made[0].name, made[0].n_vocab) == ("bpe:300", 300)


def test_training_takes_half_a_surrogate_pair_as_encoding_does():
    assert train_bpe(["aa\ud800"], 258).encode("aa\ud800").tolist() == [256, ord("?")]


def test_training_merges_a_commonest_pair_each_time(trained: BPETokenizer):
    pieces = Counter(regex.findall(PUBLISHED_PATTERN, CORPUS))
    words = [([bytes([b]) for b in word.encode()], n) for word, n in pieces.items()]
    by_rank = sorted(trained.ranks, key=trained.ranks.__getitem__)
    assert set(by_rank[:256]) == {bytes([b]) for b in range(256)}
    for token in by_rank[256:]:
        counts: Counter[tuple[bytes, bytes]] = Counter()
        for parts, n in words:
            for pair in itertools.pairwise(parts):
                counts[pair] += n
        commonest = [p for p, n in counts.items() if n == max(counts.values())]
        left, right = next(p for p in commonest if p[0] + p[1] == token)
        for parts, _ in words:
            i = 0
            while i < len(parts) - 1:
                if (parts[i], parts[i + 1]) == (left, right):
                    parts[i : i + 2] = [token]
                i += 1


def test_asking_for_too_many_tokens_names_the_most_there_can_be():
    with pytest.raises(UserError, match=r"not 5000: ask for bpe:(\d+)") as caught:
        train_bpe([CORPUS], 5000)
    most = int(re.findall(r"ask for bpe:(\d+)", str(caught.value))[0])
    assert train_bpe([CORPUS], most).n_vocab == most
    with pytest.raises(UserError):
        train_bpe([CORPUS], most + 1)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("byte", "did you mean bytes"),
        ("gpt-2", "did you mean gpt2"),
        ("bpe:0", "expected bytes, gpt1, gpt2, chars, bpe:N"),
    ],
)
def test_an_unknown_tokenizer_is_answered_with_what_there_is(name: str, hint: str):
    with pytest.raises(UserError, match=f"unknown tokenizer '{name}'.*{hint}"):
        make_tokenizer(name)


def test_characters_are_numbered_by_code_point_whatever_pieces_they_came_in():
    tokenizer = collect_characters(["b\u00e9a", "", "a\n🙂"])
    assert tokenizer.alphabet == "\nab\u00e9🙂"
    assert (tokenizer.n_vocab, tokenizer.eot_id) == (6, 5)
    assert tokenizer.encode("🙂ba").tolist() == [4, 2, 1]
    assert [tokenizer.token_bytes(i) for i in (3, 4, 5)] == ["\u00e9".encode(), "🙂".encode(), b""]
    assert bytes_per_token(tokenizer).tolist() == [1, 1, 1, 2, 4, 0]


@pytest.mark.parametrize("stranger", ["c", "\x00", "\u00e8", "\U0010ffff", "?"])
def test_a_character_that_was_not_in_the_text_is_named_with_those_that_were(stranger: str):
    tokenizer = CharTokenizer("ab\u00e9")
    with pytest.raises(UserError) as caught:
        tokenizer.encode(f"abba{stranger}ab")
    assert str(caught.value).startswith(f"{stranger!r} is not one of the 3 characters")
    assert "'ab\u00e9'" in str(caught.value)


def test_an_empty_text_has_no_alphabet():
    with pytest.raises(UserError, match="text is empty"):
        collect_characters(["", ""])


@pytest.fixture
def with_gaps(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """An encoding of tiktoken that leaves ids out, as cl100k_base does, under its name."""
    ranks = {bytes([b]): b for b in range(256)} | {b"he": 257, b"llo": 300}
    table = {
        "name": "cl100k_base",
        "pat_str": GPT2_PATTERN,
        "mergeable_ranks": ranks,
        "special_tokens": {EOT: 310, "<|fim|>": 315},
    }
    constructors = {"cl100k_base": lambda: table}
    monkeypatch.setattr("tiktoken.registry.ENCODING_CONSTRUCTORS", constructors)
    monkeypatch.setattr("tiktoken.registry.ENCODINGS", {})
    return table


def test_an_encoding_of_tiktoken_keeps_its_own_ids_and_travels_as_json(with_gaps: dict[str, Any]):
    tokenizer = make_tokenizer("tiktoken:cl100k_base")
    assert (tokenizer.name, tokenizer.eot_id, tokenizer.n_vocab) == (
        "tiktoken:cl100k_base", 310, 316,
    )  # fmt: skip
    assert tokenizer.encode("he<|fim|>").tolist() == [257, *b"<|fim|>"]
    assert [tokenizer.token_bytes(i) for i in (65, 256, 257, 310, 315)] == [
        b"A",
        b"",
        b"he",
        b"",
        b"",
    ]
    again = tokenizer_from_json(tokenizer.to_json(), "tokenizer.json")
    assert (again.name, again.eot_id, again.n_vocab) == ("tiktoken:cl100k_base", 310, 316)
    assert fingerprint(again) == fingerprint(tokenizer)
    assert again.encode("hello").tolist() == tokenizer.encode("hello").tolist()
    assert len(bytes_per_token(again)) == 316
    moved = {**json.loads(tokenizer.to_json()), "eot": 311}
    assert fingerprint(tokenizer_from_json(json.dumps(moved), "moved.json")) != fingerprint(
        tokenizer
    )
    with pytest.raises(UserError, match="end-of-text is 65"):
        tokenizer_from_json(json.dumps({**moved, "eot": 65}), "moved.json")


def test_gpt2_by_the_name_tiktoken_has_for_it_gives_the_same_ids(
    published: BPETokenizer, test_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(test_data / "tiktoken_cache", tmp_path / "filled")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "filled"))
    monkeypatch.setattr("tiktoken.registry.ENCODINGS", {})
    named = make_tokenizer("tiktoken:gpt2")
    text = (test_data / "sms_spam.tsv").read_text()  # tiktoken writes the same pattern otherwise
    assert named.encode(text).tolist() == published.encode(text).tolist()
    assert (named.name, named.eot_id, named.n_vocab) == ("tiktoken:gpt2", 50256, 50257)


def test_an_encoding_that_is_not_cached_or_not_there_says_what_helps(monkeypatch):
    monkeypatch.setattr("tiktoken.registry.ENCODINGS", {})
    with pytest.raises(UserError, match=r"files of tiktoken's o200k_base .*TIKTOKEN_CACHE_DIR"):
        make_tokenizer("tiktoken:o200k_base")
    with pytest.raises(UserError, match=r"no encoding 'cl100k' \(did you mean cl100k_base\?\)"):
        make_tokenizer("tiktoken:cl100k")


def test_a_json_file_is_a_tokenizer_known_by_its_content(trained: BPETokenizer, tmp_path: Path):
    path = tmp_path / "tok.json"
    path.write_text(trained.to_json())
    made = make_tokenizer(str(path))
    assert made.encode(CORPUS).tolist() == trained.encode(CORPUS).tolist()
    assert tokenizer_identity(str(path)) == fingerprint(trained)
    assert tokenizer_identity("gpt2") == "gpt2"
    with pytest.raises(UserError, match=r"none\.json cannot be read as a tokenizer.*--train-tok"):
        make_tokenizer(str(tmp_path / "none.json"))
