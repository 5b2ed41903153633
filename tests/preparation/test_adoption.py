"""Token files of other trainers are read in place, and theirs read ours, byte for byte.

Writers and readers here follow the formats' descriptions and share nothing with the package.
"""

import hashlib
import io
import re
import struct
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from conftest import run_verb

from gptjax.base.errors import UserError
from gptjax.data.manifest import Manifest, read_manifest, read_tokenizer
from gptjax.data.shards import ShardInfo
from gptjax.data.windows import TokenWindows
from gptjax.preparation.adoption import adopt, find_files

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
        ("train_1.bin", b"\1" + llm_c([1] * 9)[1:], r"magic number \d+, which is none of llm\.c's"),
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


@pytest.mark.slow
def test_the_verb_adopts_and_says_what_it_found(tmp_path: Path):
    directory = written(tmp_path / "theirs", "build-nanogpt")
    done = run_verb("prepare", "--adopt", directory, "--tokenizer", "bytes", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(rf"train +{len(TRAIN):,} tokens in 3 files, 30 documents", done.stdout)
    refused = run_verb("prepare", "--adopt", directory, cwd=tmp_path)
    assert (refused.returncode, "--adopt needs the --tokenizer" in refused.stderr) == (2, True)
