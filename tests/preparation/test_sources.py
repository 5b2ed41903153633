"""A file is tokenised in pieces as if whole; splits never change; inputs are checked."""

import itertools
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import regex
import tiktoken
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiktoken_ext import openai_public

from gptjax.base.errors import UserError
from gptjax.config import DataConfig
from gptjax.preparation import documents
from gptjax.preparation.documents import Document
from gptjax.preparation.oddities import Oddities
from gptjax.preparation.readers import read_passages
from gptjax.preparation.scanning import Scan, scan
from gptjax.preparation.sources import Input, find_inputs, standard_library, text_files
from gptjax.preparation.units import find_units
from gptjax.tokenizers.bpe import GPT2_PATTERN, BPETokenizer, gpt2, train_bpe

BOM = b"\xef\xbb\xbf"
BLANKS = " \n\t\r\x0b\x0c\x1c\x1f\x85\u00a0\u2028\u3000"
# bytes that make and break characters of one to four bytes, byte-order marks and line ends
AWKWARD_BYTES = st.lists(
    st.sampled_from([BOM, b"\r\n", b" ", b"a", "é".encode(), "漢".encode(), "🙂".encode()])
    | st.binary(max_size=3)
).map(b"".join)
BLANK_TEXT = st.text(alphabet=BLANKS + "ab7'.,-é漢🙂") | st.lists(
    st.sampled_from(["the sea", "  shells", "\n\n", "\n    ", " \n ", "\r\n", "'ll", " 12", " --"])
).map("".join)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("text")


@pytest.fixture(scope="module")
def trained() -> BPETokenizer:
    words = [" the sea shells", "\n\n", "\n    ", "  \n", "\r\n\r\n", "12 --", "\t\t", " \u00a0"]
    text = "".join(a + b for a in words for b in words)
    return train_bpe([text], 290)


def document(path: Path, content: bytes) -> Document:
    path.write_bytes(content)
    return Document(path.name, path.name, len(content), path)


def pieces(document: Document, piece_bytes: int, start: int = 0) -> list[str]:
    """The parts of a document, read from its file and from memory, as text."""
    inside = Document("", "", document.size, Path(document.content).read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "PART_BYTES", piece_bytes)
        parts = list(document.parts(start, document.size))
        assert parts == list(inside.parts(start, document.size))
    return [part.decode("utf-8", "replace") for part in parts]


class Part(NamedTuple):
    """What one side of the split gets of a file."""

    path: Path
    start: int
    stop: int
    split: str

    @property
    def size(self) -> int:
        return self.stop - self.start


def split_documents(files: Sequence[Document], val_fraction: float) -> list[Part]:
    """The sides of files that are one document each, as `prepare` finds them."""
    units = find_units([Input(Path(f.content)) for f in files])
    total = Scan()
    for unit in units:
        total.merge(scan(unit, val_fraction))
    ends = val_fraction > 0 and total.holds_out_ends(val_fraction)
    return [
        Part(Path(passage.document.content), start, stop, side)
        for unit in units
        for span in unit
        for passage in read_passages(span, Oddities())
        for side, start, stop, _ in passage.split(val_fraction, ends)
    ]


@example(raw=BOM + b"a\r\nb\r\n" + BOM, start=0, piece_bytes=3)
@example(raw="a 漢🙂é ".encode() * 9, start=0, piece_bytes=5)
@example(raw=b"a b \xff\xc3 c \xf0\x9f", start=0, piece_bytes=3)
@given(
    raw=AWKWARD_BYTES,
    start=st.integers(0, 9),
    piece_bytes=st.integers(len(BOM), 40),
)
@settings(deadline=None, derandomize=True, max_examples=300)
def test_pieces_joined_are_the_text(directory: Path, raw: bytes, start: int, piece_bytes: int):
    whole = document(directory / "pieces.txt", raw)
    start = min(start, len(raw))
    text = raw.removeprefix(BOM) if start == 0 else raw[start:]
    assert "".join(pieces(whole, piece_bytes, start)) == text.decode("utf-8", "replace")


@example(text="one  two\n\n  three \n four\r\n five  ", piece_bytes=4)
@given(text=BLANK_TEXT, piece_bytes=st.integers(4, 40))
@settings(deadline=None, derandomize=True, max_examples=500)
def test_encoding_piece_by_piece_is_encoding_the_whole(
    directory: Path, trained: BPETokenizer, text: str, piece_bytes: int
):
    made = pieces(document(directory / "blanks.txt", text.encode()), piece_bytes)
    assert all(made)
    words = [word for piece in made for word in regex.findall(GPT2_PATTERN, piece)]
    assert words == regex.findall(GPT2_PATTERN, text)
    ids = [token for piece in made for token in trained.encode(piece)]
    assert ids == trained.encode(text).tolist()


def pairing(pattern: str, letters: str) -> tiktoken.Encoding:
    """An encoding that joins any two bytes of the letters, so that its ids show every pre-token."""
    ranks = {bytes([b]): b for b in range(256)}
    for pair in itertools.product(sorted(set(letters.encode())), repeat=2):
        ranks.setdefault(bytes(pair), len(ranks))
    return tiktoken.Encoding("x", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})


# what patterns tell apart: letters by case, marks, digits, signs, all kinds of blanks
LETTERS = "abSsl09'/.,:;-(éßǅʰ漢字䷀鿀。、「たアー゛٣²🙂\u0301\uff0c\u200b" + BLANKS + "\xa0\u2003"
WORDS = ["the", " sea", ".\n", ")\n//", "\n\n", "\n", "'s", "it's,", "123", "漢字。", " ", "\n字",
         "\r\n", "\u3000", "a\u0301", "た。", "Ab"]  # fmt: skip
CUT_TEXT = st.text(alphabet=LETTERS) | st.lists(st.sampled_from(WORDS)).map("".join)


@pytest.fixture(scope="module", params=["gpt2", "r50k_base", "cl100k_base", "o200k_base", "older"])
def pairs(request: pytest.FixtureRequest, tmp_path_factory) -> tiktoken.Encoding:
    """An encoding with the pattern of one of tiktoken's, whose rank files need not be there."""
    if request.param == "gpt2":
        return pairing(GPT2_PATTERN, LETTERS)
    if request.param == "older":  # cl100k_base's, as tiktoken first had it
        contractions = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
        rest = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        return pairing(rf"{contractions}|{rest}|\s+(?!\S)|\s+", LETTERS)
    with pytest.MonkeyPatch.context() as patch:
        for loader in ("load_tiktoken_bpe", "data_gym_to_mergeable_bpe_ranks"):
            patch.setattr(openai_public, loader, lambda *_, **__: {})
        return pairing(getattr(openai_public, request.param)()["pat_str"], LETTERS)


@example(text="a.\n//b\nc\n d e\r\nf,漢字。字\n「た\n字")
@given(text=CUT_TEXT)
@settings(deadline=None, derandomize=True, max_examples=400)
def test_no_token_of_any_pattern_spans_a_cut(pairs: tiktoken.Encoding, text: str):
    raw, whole = text.encode(), pairs.encode_ordinary(text)
    cuts = sorted({m.start() for cut in documents._CUTS for m in cut.finditer(raw)})
    for cut in cuts:
        two = [pairs.encode_ordinary(part.decode()) for part in (raw[:cut], raw[cut:])]
        assert two[0] + two[1] == whole
    parts = [raw[a:b].decode() for a, b in itertools.pairwise([0, *cuts, len(raw)])]
    assert [i for part in parts for i in pairs.encode_ordinary(part)] == whole


@pytest.mark.parametrize(
    "unit",
    ["a line\n", "one,two\r\n", "1,22\n", "漢字。", "「漢字た」\n", "  indented it\n", "a b "],
)
def test_there_are_places_to_cut_in_every_kind_of_text(unit: str):
    raw = (unit * 9).encode()
    cuts = {m.start() for cut in documents._CUTS for m in cut.finditer(raw)}
    assert len(cuts) >= 8


def test_gpt2_reads_a_play_in_pieces_as_it_reads_the_whole(
    test_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    names = {
        "vocab.bpe": "6d1cbeee0f20b3d9449abfede4726ed8212e3aee",
        "encoder.json": "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6",
    }
    for name, cached in names.items():
        shutil.copyfile(test_data / "tiktoken_cache" / cached, tmp_path / name)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    tokenizer, path = gpt2(tmp_path), test_data / "tinyshakespeare.txt"
    made = pieces(Document("", "", path.stat().st_size, path), 1000)
    assert len(made) > 1000
    assert max(map(len, made)) < 2000
    ids = np.concatenate([tokenizer.encode(piece) for piece in made])
    np.testing.assert_array_equal(ids, tokenizer.encode(path.read_text()))


@pytest.mark.parametrize("unit", ["x", "é", "\n", "ab\t"])
def test_text_without_a_place_to_cut_is_still_read_in_bounded_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: str
):
    monkeypatch.setattr(documents, "UNBROKEN_BYTES", 512)
    text = unit * 10_000
    made = pieces(document(tmp_path / "long.txt", text.encode()), 64)
    assert max(len(piece.encode()) for piece in made) <= 512 + 3
    assert "".join(made) == text


def test_a_file_that_shrinks_while_it_is_read_ends_early(tmp_path: Path):
    whole = document(tmp_path / "a.txt", b"one two three")
    (tmp_path / "a.txt").write_bytes(b"one")
    assert list(whole.parts(0, whole.size)) == [b"one"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "PART_BYTES", 4)
        assert list(whole.parts(0, whole.size)) == [b"one"]


def test_a_file_that_went_away_is_named(tmp_path: Path):
    gone = document(tmp_path / "gone.txt", b"text")
    (tmp_path / "gone.txt").unlink()
    with pytest.raises(UserError, match=re.escape(str(gone.content))):
        list(gone.parts(0, gone.size))


@pytest.fixture(scope="module")
def tiny_documents(tmp_path_factory: pytest.TempPathFactory) -> list[Document]:
    directory = tmp_path_factory.mktemp("tiny")
    return [document(directory / f"{i}.txt", f"text {i}\n".encode()) for i in range(2000)]


@pytest.mark.parametrize("val_fraction", [0.02, 0.1, 0.5])
def test_the_hash_splits_whole_documents_at_about_the_fraction(
    tiny_documents: list[Document], val_fraction: float
):
    parts = split_documents(tiny_documents, val_fraction)
    whole = [(d.content, 0, d.size) for d in tiny_documents]
    assert [(d.path, d.start, d.stop) for d in parts] == whole
    assert {d.split for d in parts} == {"train", "val"}
    held_out = sum(d.split == "val" for d in parts)
    deviation = (2000 * val_fraction * (1 - val_fraction)) ** 0.5
    assert abs(held_out - 2000 * val_fraction) < 4 * deviation


def test_the_split_of_a_document_does_not_depend_on_order_name_or_company(
    tiny_documents: list[Document], tmp_path: Path
):
    split_of = {d.path: d.split for d in split_documents(tiny_documents, 0.1)}
    for others in (tiny_documents[::-1], tiny_documents[700:1500], tiny_documents[::3]):
        for part in split_documents(others, 0.1):
            assert part.split == split_of[part.path]
    moved = [
        document(tmp_path / Path(d.content).stem, d.read(0, d.size)) for d in tiny_documents[:500]
    ]
    for part in split_documents(moved, 0.1):
        assert part.split == split_of[tiny_documents[int(part.path.name)].content]


def test_a_larger_fraction_only_adds_documents_to_validation(tiny_documents: list[Document]):
    small, large = (
        {d.path for d in split_documents(tiny_documents, fraction) if d.split == "val"}
        for fraction in (0.05, 0.2)
    )
    assert small < large


def test_no_fraction_holds_nothing_out(tiny_documents: list[Document]):
    parts = split_documents(tiny_documents, 0.0)
    assert parts == [Part(Path(d.content), 0, d.size, "train") for d in tiny_documents]


@pytest.mark.parametrize("val_fraction", [0.01, 0.05, 0.3, 0.5])
@pytest.mark.parametrize("word", ["one", "漢字🙂"])
def test_the_last_lines_of_a_single_document_are_held_out(
    tmp_path: Path, word: str, val_fraction: float
):
    raw = "".join(f"{word * (1 + i % 7)} line {i}\n" for i in range(300)).encode()
    train, val = split_documents([document(tmp_path / "a.txt", raw)], val_fraction)
    assert (train.split, val.split) == ("train", "val")
    assert (train.start, train.stop, val.stop) == (0, val.start, len(raw))
    assert raw[train.stop - 1 : train.stop] == b"\n"
    longest = max(map(len, raw.splitlines(keepends=True)))
    assert 0 <= val_fraction * len(raw) - val.size <= longest


def test_of_few_documents_each_gives_its_end_in_order(tmp_path: Path):
    few = [document(tmp_path / f"{i}", b"a line\n" * (500 + i)) for i in range(5)]
    parts = split_documents(few, 0.02)
    assert [d.split for d in parts] == ["train", "val"] * 5
    assert [d.path for d in parts[::2]] == [d.path for d in parts[1::2]]
    assert [d.path for d in parts[::2]] == [d.content for d in few]


@pytest.mark.parametrize("ending", ["", "\n", "\nshort\n"])
@pytest.mark.parametrize("lead", ["", "x", "xy", "xyz"])
def test_a_line_too_long_to_end_soon_is_cut_between_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lead: str, ending: str
):
    monkeypatch.setattr(documents, "PART_BYTES", 16)
    text = lead + "漢🙂" * 50 + ending
    whole = document(tmp_path / "a.txt", text.encode())
    train, val = split_documents([whole], 0.2)
    assert (train.split, val.split) == ("train", "val")
    assert (train.start, train.stop, val.stop) == (0, val.start, whole.size)
    made = [b"".join(whole.parts(part.start, part.stop)) for part in (train, val)]
    assert made[0].decode() + made[1].decode() == text
    assert 0 < val.size <= 0.2 * whole.size + 1


def test_text_files_keep_their_order_and_leave_out_empty_ones(tmp_path: Path):
    for name, content in {"b": "bb", "empty": "", "a": "a"}.items():
        (tmp_path / name).write_text(content)
    paths = [str(tmp_path / name) for name in ("b", "empty", "a")]
    assert text_files(paths) == [Input(tmp_path / "b"), Input(tmp_path / "a")]


def test_every_path_that_is_no_file_is_named_at_once(tmp_path: Path):
    (tmp_path / "good.txt").write_text("text")
    (tmp_path / "directory").mkdir()
    bad = [str(tmp_path / "missing.txt"), str(tmp_path / "directory")]
    with pytest.raises(UserError) as caught:
        text_files([bad[0], str(tmp_path / "good.txt"), bad[1]])
    assert all(path in str(caught.value) for path in bad)
    assert "good.txt" not in str(caught.value)


def test_nothing_but_empty_files_is_an_error_that_names_them(tmp_path: Path):
    paths = [str(tmp_path / name) for name in ("a", "b")]
    for path in paths:
        Path(path).write_text("")
    with pytest.raises(UserError, match=f"{re.escape(paths[0])}, {re.escape(paths[1])}"):
        text_files(paths)


def test_the_standard_library_is_there_sorted_readable_and_nobody_elses():
    library = standard_library()
    paths = [d.path for d in library]
    assert len(paths) > 500
    assert paths == sorted(set(paths))
    assert Path(re.__file__) in paths
    assert not any({"site-packages", "dist-packages"} & set(p.parts) for p in paths)
    assert not any(p.is_relative_to(Path(sys.modules["pytest"].__file__).parent) for p in paths)
    assert all(d.path.read_bytes().decode() and d.size == d.path.stat().st_size for d in library)


def hash_of(directory: Path, *contents: bytes, prefix: str = "") -> str:
    """The digest of documents."""
    files = [document(directory / f"{prefix}{i}", c) for i, c in enumerate(contents)]
    inputs = [Input(Path(f.content)) for f in files]
    total = Scan()
    for source in inputs:
        for unit in find_units([source]):
            total.merge(scan(unit, 0.1))
    return total.digest.text


@given(raw=st.binary(min_size=1, max_size=50), where=st.integers(0), by=st.integers(1, 255))
@settings(deadline=None, derandomize=True)
def test_the_content_hash_changes_with_any_byte(directory: Path, raw: bytes, where: int, by: int):
    where %= len(raw)
    changed = raw[:where] + bytes([raw[where] ^ by]) + raw[where + 1 :]
    is_same = raw.removeprefix(BOM) == changed.removeprefix(BOM)
    assert (hash_of(directory, raw) == hash_of(directory, changed)) == is_same


def test_the_content_hash_changes_with_documents_and_not_with_names(tmp_path: Path):
    different = [(b"abc",), (b"a", b"bc"), (b"ab", b"c"), (b"bc", b"a"), (b"abc", b"abc")]
    hashes = [hash_of(tmp_path, *contents) for contents in different]
    assert len(set(hashes)) == len(different)
    assert hash_of(tmp_path, b"a", b"bc", prefix="other") == hashes[1]


def test_no_file_comes_twice_by_directories_or_links_within_a_pattern(tmp_path: Path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / ".hidden").mkdir()
    for path in ("in/a.txt", "in/deep/b.txt", "in/.hidden/c.txt"):
        (tmp_path / path).write_text(path)
    for link, target in (("deep/up", ".."), ("here", "."), ("d.txt", "a.txt")):
        (tmp_path / "in" / link).symlink_to(target)  # two circles: exponentially many paths
    for pattern, expected in (
        ("in", ["a.txt", "d.txt", "deep/b.txt"]),
        ("in/**/*.txt", ["a.txt", "d.txt", "deep/b.txt"]),
        ("in/**", ["a.txt", "d.txt", "deep/b.txt"]),
        ("in/deep/../**/*.txt", ["a.txt", "d.txt", "deep/b.txt"]),
        ("i*/d*", ["d.txt", "deep/b.txt"]),
        ("in/**.txt", ["a.txt", "d.txt"]),
    ):
        found = find_inputs(DataConfig(inputs=(str(tmp_path / pattern),)))
        assert [os.path.relpath(i.path, tmp_path / "in") for i in found] == expected, pattern


@pytest.mark.parametrize(
    ("pattern", "names", "left_out"),
    [
        ("*", ["a.txt", "b.txt"], {"binary": 1, "linked": 1, "own_products": 1}),
        ("**/*", ["a.txt", "b.txt"], {"binary": 1, "hidden": 2, "linked": 1, "own_products": 1}),
        ("*.txt", ["a.txt"], {}),
        (".s*", [".secret"], {}),
        ("*/*", ["b.txt"], {"own_products": 1}),
    ],
)
def test_a_pattern_leaves_out_what_a_walk_does(
    tmp_path: Path, pattern: str, names: list[str], left_out: dict[str, int]
):
    for path in ("a.txt", ".secret", ".git/x/config", "run/notes.txt", "sub/b.txt"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(path)
    (tmp_path / "run" / "config.json").write_text('{"model":1,"data":1,"optim":1,"train":1}')
    (tmp_path / "image").write_bytes(b"\x89PNG\0")
    (tmp_path / "dead").symlink_to("nothing")
    oddities = Oddities()
    data = DataConfig(inputs=(str(tmp_path / pattern), str(tmp_path / "a.txt")))
    found = find_inputs(data, oddities)
    assert [i.path.name for i in found] == (names if "a.txt" in names else [*names, "a.txt"])
    twice = {"given_twice": 1} if "a.txt" in names else {}
    assert oddities.counts == {**left_out, **twice}


def test_a_file_that_is_given_twice_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    Path("in/a").write_text("a")
    oddities = Oddities()
    found = find_inputs(DataConfig(inputs=("in", "./in/../in/a", "in/*", "in")), oddities)
    assert ([str(i.path) for i in found], oddities.counts) == (["in/a"], {"given_twice": 3})


def test_an_empty_input_is_not_the_directory_one_is_in(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a").write_text("a")
    with pytest.raises(UserError, match="--input is empty"):
        find_inputs(DataConfig(inputs=("",)))


@pytest.mark.parametrize("kept", ["in/locked", "in/a"])
def test_what_may_not_be_read_is_left_out_of_a_walk_and_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: str
):
    (tmp_path / "in" / "locked").mkdir(parents=True)
    for path in ("in/a", "in/locked/b"):
        (tmp_path / path).write_text("text")

    def refusing(act: Callable[..., Any]) -> Callable[..., Any]:
        def refuse(path: Any, *args: Any, **kwargs: Any) -> Any:
            if str(path) == str(tmp_path / kept):
                raise PermissionError(13, "Permission denied", str(path))
            return act(path, *args, **kwargs)

        return refuse

    monkeypatch.setattr(os, "scandir", refusing(os.scandir))  # as for a user who is not root
    monkeypatch.setattr(Path, "open", refusing(Path.open))
    oddities = Oddities()
    found = find_inputs(DataConfig(inputs=(str(tmp_path / "in"),)), oddities)
    assert [i.path.name for i in found] == ["b" if kept == "in/a" else "a"]
    assert (oddities.counts, oddities.first["unreadable"]) == (
        {"unreadable": 1},
        str(tmp_path / kept),
    )


def test_a_pipe_or_a_device_is_refused_with_what_works(tmp_path: Path):
    os.mkfifo(pipe := tmp_path / "a pipe")
    for path, hint in ((pipe, f"--input - < '{pipe}'"), (Path("/dev/null"), "--input -")):
        with pytest.raises(UserError, match="is a pipe or a device") as caught:
            find_inputs(DataConfig(inputs=(str(path),)))
        assert hint in str(caught.value)
