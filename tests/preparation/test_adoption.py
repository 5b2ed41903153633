"""Token files of other trainers are read in place, and theirs read ours, byte for byte.

Writers and readers here follow the formats' descriptions and share nothing with the package.
"""

import gzip
import hashlib
import io
import os
import pickle
import re
import shlex
import struct
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from conftest import run_verb

from gptjax.base.errors import ConfigError, UserError
from gptjax.config.names import TOKENIZERS
from gptjax.data.manifest import Manifest, read_manifest, read_tokenizer
from gptjax.data.shards import ShardInfo
from gptjax.data.windows import TokenWindows
from gptjax.preparation.adoption import adopt, find_files
from gptjax.tokenizers.bpe import BPETokenizer

BYTES = [[*list(f"document {i}: ".encode() * 30), 256] for i in range(40)]
TRAIN = list(chain.from_iterable(BYTES[:30]))
VAL = list(chain.from_iterable(BYTES[30:]))


def llm_c(tokens: list[int]) -> bytes:
    """256 int32, the first three 20240520, 1 and the count; then uint16."""
    return struct.pack("<256i", 20240520, 1, len(tokens), *[0] * 253) + nano(tokens)


def wide(tokens: list[int]) -> bytes:
    header = struct.pack("<256i", 20240801, 7, len(tokens), *[0] * 253)
    return header + struct.pack(f"<{len(tokens)}I", *tokens)


def nano(tokens: list[int]) -> bytes:
    """`np.array(ids, dtype=np.uint16).tofile(f)`."""
    return struct.pack(f"<{len(tokens)}H", *tokens)


def npy(tokens: list[int]) -> bytes:
    """`np.save(f, np.array(ids, dtype=np.uint16))`."""
    file = io.BytesIO()
    np.save(file, np.array(tokens, np.uint16))
    return file.getvalue()


KINDS = {
    "llm.c": ("fineweb_train_{:06d}.bin", "fineweb_val_000000.bin", llm_c, "llm.c"),
    "llm.c uint32": ("fw_train_{:06d}.bin", "fw_val_000000.bin", wide, "llm.c"),
    "nanoGPT": ("train{:.0s}.bin", "val.bin", nano, "raw"),
    "build-nanogpt": ("edufineweb_train_{:06d}.npy", "edufineweb_val_000000.npy", npy, "npy"),
}


def written(directory: Path, kind: str) -> Path:
    """A directory as that trainer leaves it, the training tokens in three files where it can."""
    train, val, pack, _ = KINDS[kind]
    directory.mkdir()
    parts = [TRAIN] if kind == "nanoGPT" else [TRAIN[:1000], TRAIN[1000:1003], TRAIN[1003:]]
    for i, part in enumerate(parts):
        (directory / train.format(str(i) if kind == "nanoGPT" else i)).write_bytes(pack(part))
    (directory / val).write_bytes(pack(VAL))
    return directory


def tokens_of(manifest: Manifest, split: str) -> list[int]:
    windows = TokenWindows(manifest, split, 7)
    return [int(t) for i in range(len(windows)) for t in windows[i][:-1]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beside", [True, False])
def test_files_are_read_in_place(tmp_path: Path, kind: str, beside: bool):
    directory = written(tmp_path / "theirs", kind)
    before = {p.name: p.read_bytes() for p in directory.iterdir()}
    out = directory if beside else tmp_path / "ours"
    manifest = adopt(directory, "bytes", out)
    assert manifest == read_manifest(out)
    for split, tokens in (("train", TRAIN), ("val", VAL)):
        read = tokens_of(manifest, split)
        assert read == tokens[: len(read)]
        assert len(tokens) - len(read) <= 7
        found = manifest.splits[split]
        assert (found.tokens, found.documents) == (len(tokens), tokens.count(256))
        assert found.bytes == len(tokens) - tokens.count(256)
        for shard in found.shards:
            raw = before[Path(shard.name).name]
            assert (shard.sha256, shard.layout) == (hashlib.sha256(raw).hexdigest(), KINDS[kind][3])
    assert read_tokenizer(manifest).name == "bytes"
    made = {"manifest.json", "tokenizer.json"}
    assert {p.name for p in out.iterdir()} == made | (set(before) if beside else set())
    assert {p.name: p.read_bytes() for p in directory.iterdir() if p.name not in made} == before


def test_where_they_lie_does_not_change_the_fingerprint(tmp_path: Path):
    beside = adopt(written(tmp_path / "a", "llm.c"), "bytes", tmp_path / "a")
    apart = adopt(written(tmp_path / "b", "llm.c"), "bytes", tmp_path / "out")
    assert beside.fingerprint == apart.fingerprint


def test_adopting_again_is_free_and_other_files_are_refused(tmp_path: Path):
    directory = written(tmp_path / "a", "nanoGPT")
    first = adopt(directory, "bytes", directory)
    read: list[int] = []
    assert adopt(directory, "bytes", directory, read.append) == first
    assert read == []
    (directory / "train.bin").write_bytes(nano([*TRAIN, 1]))
    with pytest.raises(UserError, match=r"is too long"):
        adopt(directory, "bytes", directory)
    (directory / "val_2.bin").write_bytes(nano([1, 2]))
    (directory / "train.bin").write_bytes(nano(TRAIN))
    with pytest.raises(UserError, match=r"holds other data: choose another --out"):
        adopt(directory, "bytes", directory)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.bin", nano([1, 300]), r"train\.bin holds token id 300, but bytes ends at 256"),
        ("train.bin", b"abc", r"train\.bin has 3 bytes and no header of llm\.c"),
        ("train.bin", b"", r"train\.bin has 0 bytes"),
        ("train_1.bin", llm_c([1] * 50)[:-2], r"train_1\.bin is truncated"),
        ("train_1.bin", b"\1" + llm_c([1] * 9)[1:], r"magic number \d+, not one of llm\.c's"),
        ("train.npy", npy([1] * 50)[:-2], r"train\.npy is truncated"),
        ("train.npy", nano([1] * 50), r"not a NumPy file"),
        ("data.bin", nano([1]), r"data\.bin in .*: expected train or val in the name"),
        ("train_val.bin", nano([1]), r"train_val\.bin in .*: expected train or val"),
        ("train_2.bin", wide([1]), r"mixes files of uint16 and uint32"),
    ],
)
def test_a_file_that_is_something_else_is_named(
    tmp_path: Path, name: str, content: bytes, message: str
):
    (tmp_path / "val.bin").write_bytes(nano(VAL))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        adopt(tmp_path, "bytes", tmp_path)
    assert not (tmp_path / "manifest.json").exists()


def test_arrays_of_another_shape_or_type_and_empty_directories_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="has no token files"):
        find_files(tmp_path)
    for array in (np.zeros((2, 3), np.uint16), np.zeros(6, np.int64), np.zeros(6, ">u2")):
        np.save(tmp_path / "train.npy", array)
        with pytest.raises(UserError, match=r"has shape .*, expected one dimension of uint16 or"):
            find_files(tmp_path)
    with pytest.raises(UserError, match="no directory"):
        find_files(tmp_path / "none")


def shards(manifest: Manifest, split: str) -> list[tuple[Path, ShardInfo]]:
    return [(manifest.directory / s.name, s) for s in manifest.splits[split].shards]


def read_as_llm_c(path: Path) -> list[int]:
    """As llm.c's dataloader does: magic, version and count, then the size of the file."""
    raw = path.read_bytes()
    header = struct.unpack_from("<256i", raw)
    assert header[:2] == (20240520, 1)
    assert len(raw) == 256 * 4 + header[2] * 2
    return list(struct.unpack_from(f"<{header[2]}H", raw, 1024))


def read_as_modded_nanogpt(path: Path) -> list[int]:
    """As its `_load_data_shard` does, with NumPy in torch's place."""
    header = np.fromfile(path, dtype=np.int32, count=256)
    assert header[0] == 20240520, "magic number mismatch in the data .bin file"
    assert header[1] == 1, "unsupported version"
    tokens = np.empty(int(header[2]), dtype=np.uint16)
    with path.open("rb", buffering=0) as file:
        file.seek(256 * 4)
        assert file.readinto(tokens) == 2 * len(tokens), "number of tokens read does not match"
    return tokens.tolist()


@pytest.mark.parametrize("read", [read_as_llm_c, read_as_modded_nanogpt])
def test_others_read_ours(prepared: Manifest, read):
    for split in ("train", "val"):
        tokens = list(chain.from_iterable((read(path) for path, _ in shards(prepared, split))))
        assert len(tokens) == prepared.splits[split].tokens
        ours = tokens_of(prepared, split)
        assert tokens[: len(ours)] == ours


def test_ours_and_theirs_of_the_same_tokens_are_the_same_bytes(prepared: Manifest):
    for path, _ in shards(prepared, "train"):
        assert path.read_bytes() == llm_c(read_as_llm_c(path))


WORDS = [b"%c%c" % (a, b) for a in range(97, 123) for b in range(97, 123)]
TABLE = [bytes([i]) for i in range(256)] + WORDS + [word + b"a" for word in WORDS]
LARGE = BPETokenizer("large", {token: i for i, token in enumerate(TABLE)})
IDS = (np.random.default_rng(0).zipf(1.3, 4000) * 7 % LARGE.n_vocab).astype(np.uint16)
TEXT = b"first of all, some words of a text\n" * 300


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (IDS.astype("<u4").tobytes(), "its tokens are uint32, expected uint16"),
        (IDS.astype("<i8").tobytes(), "its tokens are uint64, expected uint16"),
        (TEXT, "is text, or has one byte a token"),
        ("漢字 ".encode() * 700, "is text, or has one byte a token"),
        (bytes(i % 65 for i in range(9000)), "no byte in .* is above 127"),
        (np.frombuffer(TEXT, np.uint8).astype("<u2").tobytes(), "has no id above 120"),
        (TEXT.decode().encode("utf-16-le"), "has no id above 120"),
        (bytes(9000), "only id 0"),
        (gzip.compress(IDS.tobytes()) + b"\0", "is a gzip file"),
        (b"PK\3\4" + bytes(100), "is a zip file"),
        (b"PAR1" + bytes(100), "is a Parquet file"),
        (npy([1, 2]), "is a NumPy file, whose name should end in .npy"),
        (IDS.tobytes()[:-1], "has 7999 bytes and no header"),
        (IDS.astype(">u2").tobytes(), "another --tokenizer made it"),
    ],
)
def test_bare_files_that_no_tokenizer_makes_are_refused(
    tmp_path: Path, content: bytes, message: str
):
    (tmp_path / "tok.json").write_text(LARGE.to_json())
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "train.bin").write_bytes(content)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message):
        adopt(tmp_path / "in", str(tmp_path / "tok.json"), tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before


def test_bare_files_that_a_tokenizer_may_have_made_are_adopted(tmp_path: Path):
    (tmp_path / "tok.json").write_text(LARGE.to_json())
    (tmp_path / "train.bin").write_bytes(IDS.tobytes())
    manifest = adopt(tmp_path, str(tmp_path / "tok.json"), tmp_path / "zipf")
    assert (manifest.splits["train"].tokens, manifest.notes) == (4000, {})
    noise = np.random.default_rng(0).integers(0, LARGE.n_vocab, 99_000).astype("<u2")
    (tmp_path / "train.bin").write_bytes(noise.tobytes())
    assert adopt(tmp_path, str(tmp_path / "tok.json"), tmp_path / "out").notes == {"even_ids": 1}


def test_what_is_said_about_wide_tokens_mends_the_file(tmp_path: Path):
    (path := tmp_path / "train.bin").write_bytes(IDS.astype("<u4").tobytes())
    (tmp_path / "tok.json").write_text(LARGE.to_json())
    with pytest.raises(UserError) as caught:
        adopt(tmp_path, str(tmp_path / "tok.json"), tmp_path)
    code = shlex.split(str(caught.value).partition("python -c ")[2])[0]
    exec(code, {})
    assert path.read_bytes() == IDS.tobytes()


@pytest.mark.parametrize("pack", ["npy", "llm.c"])
def test_files_without_a_token_are_refused(tmp_path: Path, pack: str):
    train, _, packed, _ = KINDS["build-nanogpt" if pack == "npy" else pack]
    (tmp_path / train.format(0)).write_bytes(packed([]))
    with pytest.raises(UserError, match="holds no token: move it away"):
        adopt(tmp_path, "bytes", tmp_path)


def nano_characters(directory: Path, alphabet: str) -> str:
    """A directory as nanoGPT's shakespeare_char/prepare.py leaves it; the text it is of."""
    text = "of a text of some words\n" * 200
    stoi = {c: i for i, c in enumerate(alphabet)}
    directory.mkdir()
    (directory / "train.bin").write_bytes(nano([stoi[c] for c in text[:4000]]))
    (directory / "val.bin").write_bytes(nano([stoi[c] for c in text[4000:]]))
    meta = {"vocab_size": len(stoi), "itos": {i: c for c, i in stoi.items()}, "stoi": stoi}
    (directory / "meta.pkl").write_bytes(pickle.dumps(meta))
    return text


@pytest.mark.parametrize("name", [None, "chars"])
def test_characters_of_nanogpt_keep_their_ids(tmp_path: Path, name: str | None):
    text = nano_characters(tmp_path / "in", "zwtsromfexda\n ")
    manifest = adopt(tmp_path / "in", name, tmp_path / "out")
    tokenizer = read_tokenizer(manifest)
    assert (manifest.tokenizer, manifest.n_vocab) == ("chars", 15)
    assert tokenizer.encode(text[:4000]).tolist() == [
        *np.fromfile(tmp_path / "in/train.bin", "<u2")
    ]
    assert [s.documents for s in manifest.splits.values()] == [1, 1]
    read = tokens_of(manifest, "train")
    assert tokenizer.decode(read) == text[: len(read)]


def test_every_tokenizer_name_works_or_is_refused_with_the_reason(tmp_path: Path):
    nano_characters(tmp_path / "chars", "zwtsromfexda\n ")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "train.bin").write_bytes(nano(TRAIN))
    reasons = {"chars": "meta.pkl, but .* has none", "bpe:300": "made from a text"}
    for name in {*TOKENIZERS, "bpe:300"} - {"gpt1", "gpt2"}:
        if name == "bytes":
            adopt(tmp_path / "bare", name, tmp_path / "out")
            with pytest.raises(UserError, match="the tokens are characters"):
                adopt(tmp_path / "chars", name, tmp_path / "other")
        else:
            with pytest.raises(UserError, match=reasons[name]):
                adopt(tmp_path / "bare", name, tmp_path / "other")
    with pytest.raises(ConfigError, match="--adopt needs the --tokenizer"):
        adopt(tmp_path / "bare", None, tmp_path / "other")


@pytest.mark.parametrize("kind", KINDS)
def test_shards_of_another_size_hold_the_same_tokens(tmp_path: Path, kind: str):
    directory = written(tmp_path / "theirs", kind)
    before = {p.name: p.read_bytes() for p in directory.iterdir()}
    in_place = adopt(directory, "bytes", tmp_path / "place")
    manifest = adopt(directory, "bytes", out := tmp_path / "ours", shard_tokens=700)
    assert manifest == read_manifest(out) == adopt(directory, "bytes", out, shard_tokens=700)
    for split, tokens in (("train", TRAIN), ("val", VAL)):
        found = manifest.splits[split]
        read = [t for s in found.shards for t in read_as_llm_c(out / s.name)]
        assert read == tokens
        assert (
            min(s.tokens for s in found.shards) >= 700 > 0.5 * max(s.tokens for s in found.shards)
        )
        expected = in_place.splits[split]
        assert (found.documents, found.bytes) == (expected.documents, expected.bytes)
    assert {p.name: p.read_bytes() for p in directory.iterdir()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ours", "place", "theirs"]
    for other in (None, 800):
        with pytest.raises(UserError, match=f"shard_tokens was 700, now {other}"):
            adopt(directory, "bytes", out, shard_tokens=other)


@pytest.mark.parametrize("size", [None, 500])
def test_a_full_disk_leaves_nothing_of_an_adoption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int | None
):
    directory = written(tmp_path / "theirs", "llm.c")
    flush, left = os.fsync, iter(range(2 if size else 1))

    def full(descriptor: int) -> None:
        if next(left, None) is None:
            raise OSError(28, "No space left on device")
        flush(descriptor)

    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(os, "fsync", full)
    for out in (tmp_path / "out", directory) if size is None else (tmp_path / "out",):
        with pytest.raises(UserError, match=r"cannot adopt .*No space left"):
            adopt(directory, "bytes", out, shard_tokens=size)
        assert sorted(tmp_path.rglob("*")) == before


def test_a_tokenizer_of_somebody_else_is_not_overwritten(tmp_path: Path):
    directory = written(tmp_path / "theirs", "nanoGPT")
    (directory / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="is another tokenizer"):
        adopt(directory, "bytes", directory)
    assert (directory / "tokenizer.json").read_text() == "{}"


@pytest.mark.slow
def test_the_verb_adopts_and_says_what_it_found(tmp_path: Path):
    directory = written(tmp_path / "theirs", "build-nanogpt")
    done = run_verb("prepare", "--adopt", directory, "--tokenizer", "bytes", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(rf"train +{len(TRAIN):,} tokens in 3 files, 30 documents", done.stdout)
    refused = run_verb("prepare", "--adopt", directory, cwd=tmp_path)
    assert (refused.returncode, "--adopt needs the --tokenizer" in refused.stderr) == (2, True)
