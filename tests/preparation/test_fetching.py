"""Ready token files come from a hub whole and undamaged, as many as are asked for, or not at all.

The hub is one of this machine (hub_server.py); huggingface_hub speaks to it as to the real one.
"""

import importlib
import random
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, environment_on, run_verb
from hub_server import Hub

from gptjax.base.errors import ConfigError, UserError
from gptjax.config import DataConfig
from gptjax.data.manifest import read_manifest, read_tokenizer
from gptjax.data.windows import TokenWindows
from gptjax.preparation.fetching import existing_manifest, prepare_from_hub, select_files
from gptjax.preparation.hub.downloading import arrived
from gptjax.preparation.hub.repository import RemoteFile, find_repository, hub_name

NAMES = ["fineweb_val_000000.bin", *(f"fineweb_train_{i:06d}.bin" for i in range(1, 6))]
TOKENS = 2000
SIZE = 1024 + 2 * TOKENS


def llm_c(number: int) -> bytes:
    """A token file as llm.c describes it: ids of bytes, and an end of text here and there."""
    ids = [(i * 7 + number) % 257 for i in range(TOKENS)]
    return struct.pack(f"<256i{TOKENS}H", 20240520, 1, TOKENS, *[0] * 253, *ids)


@pytest.fixture
def shards(hub: Hub) -> Path:
    repository = hub.root / "owner" / "tokens"
    repository.mkdir(parents=True)
    for number, name in enumerate(NAMES):
        (repository / name).write_bytes(llm_c(number))
    (repository / "README.md").write_text("tokens\n")
    (repository / "tokenizer.bin").write_bytes(b"no tokens")
    return repository


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    return DataConfig(path=str(tmp_path / "out"), tokenizer="bytes", hub="owner/tokens")


def prepare(data: DataConfig, tokens: int | None = None) -> None:
    prepare_from_hub(data, tokens, None)


def files(directory: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in directory.iterdir()}


@pytest.mark.parametrize(
    ("tokens", "count"),
    [(None, 5), (1, 1), (TOKENS, 1), (2 * TOKENS, 2), (3 * TOKENS, 3), (10**9, 5)],
)
def test_as_many_files_as_hold_the_tokens_are_fetched(hub, shards, data, tokens, count, capsys):
    prepare(data, tokens)
    manifest, wanted = read_manifest(Path(data.path)), NAMES[: count + 1]
    made = files(Path(data.path))
    assert set(made) == {*wanted, "manifest.json", "tokenizer.json"}
    assert all(made[name] == (shards / name).read_bytes() for name in wanted)
    assert [s.name for s in manifest.splits["train"].shards] == wanted[1:]
    assert (manifest.splits["train"].tokens, manifest.splits["val"].tokens) == (
        count * TOKENS, TOKENS,
    )  # fmt: skip
    assert manifest.source == f"owner/tokens at {hub.commit}"
    assert read_tokenizer(manifest).name == "bytes"
    assert len(TokenWindows(manifest, "train", 64)) == (count * TOKENS - 1) // 64
    said = capsys.readouterr().out
    assert f"{count + 1} of its 6 token files" in said
    assert ("reads these" in said) == (tokens == 10**9)
    assert sorted(p.name for p in Path(data.path).parent.iterdir()) == ["hub", "out"]


def test_files_are_chosen_in_order_by_what_they_hold():
    sizes = (1124, 1074, 1094)  # with llm.c's header of 1024 bytes
    remote = [RemoteFile(f"train_{i}.bin", size, "") for i, size in enumerate(sizes)]
    remote += [RemoteFile("val.npy", 9, ""), RemoteFile("README.md", 10**6, "")]
    chosen = {n: [f.size for f in select_files(remote, n, 2)] for n in (1, 50, 51, 75, 76, None)}
    assert chosen == {
        1: [1124, 9], 50: [1124, 9], 51: [1124, 1074, 9], 75: [1124, 1074, 9],
        76: [*sizes, 9], None: [*sizes, 9],
    }  # fmt: skip


def test_what_is_complete_is_recognised_without_a_network_and_other_data_refused(
    hub, shards, data, monkeypatch
):
    prepare(data, TOKENS)
    before, asked = files(Path(data.path)), len(hub.asked)
    prepare(data, TOKENS)
    assert (files(Path(data.path)), len(hub.asked)) == (before, asked)
    with pytest.raises(UserError, match=r"tokens was 2000, now 4000\): choose another --out"):
        existing_manifest(data, 2 * TOKENS)
    other = DataConfig(path=data.path, tokenizer="gpt2", hub="owner/other")
    with pytest.raises(UserError, match="hub was 'owner/tokens', now 'owner/other'"):
        existing_manifest(other, TOKENS)
    assert (files(Path(data.path)), len(hub.asked)) == (before, asked)


def test_a_directory_of_something_else_is_refused_and_left(hub, shards, data):
    Path(data.path).mkdir()
    (Path(data.path) / "thesis.tex").write_text("years")
    with pytest.raises(UserError, match="is not a prepared data set"):
        prepare(data)
    assert files(Path(data.path)) == {"thesis.tex": b"years"}
    assert hub.fetched(".bin") == []


def test_a_connection_that_breaks_goes_on_where_it_broke(hub, shards, data, monkeypatch):
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100)
    hub.cut = {NAMES[1]: 3050, NAMES[0]: 0}
    prepare(data, TOKENS)
    assert hub.fetched(NAMES[1]) == ["", "bytes=3000-"]
    assert hub.fetched(NAMES[0]) == ["", ""]
    assert files(Path(data.path))[NAMES[1]] == llm_c(1)


def test_what_a_kill_left_is_used_and_its_rest_fetched(hub, shards, data):
    directory = Path(data.path + ".preparing")
    directory.mkdir()
    commit = find_repository(hub_name(data.hub)).files
    digests = {f.name: f.digest for f in commit}
    (directory / NAMES[0]).write_bytes(llm_c(0))
    (directory / f".{NAMES[1]}.{digests[NAMES[1]][:16]}.part").write_bytes(llm_c(1)[:1500])
    (directory / f".{NAMES[2]}.{digests[NAMES[2]][:16]}.part").write_bytes(llm_c(2))
    (directory / f".{NAMES[3]}.0123456789abcdef.part").write_bytes(b"an older file of that name")
    (directory / NAMES[4]).write_bytes(llm_c(4)[:-1] + b"?")
    assert sum(arrived(f, directory) for f in commit) == 3 * SIZE + 1500
    prepare(data, 4 * TOKENS)
    assert {name: hub.fetched(name) for name in NAMES} == {
        NAMES[0]: [], NAMES[1]: ["bytes=1500-"], NAMES[2]: [], NAMES[3]: [""], NAMES[4]: [""],
        NAMES[5]: [],
    }  # fmt: skip
    made = files(Path(data.path))
    assert [made[name] for name in NAMES[:5]] == [llm_c(i) for i in range(5)]
    assert len(made) == 7
    assert not directory.exists()


@pytest.mark.parametrize("times", [1, 2])
def test_a_damaged_file_is_fetched_once_more(hub, shards, data, times):
    hub.damage = {NAMES[2]: times}
    if times == 1:
        prepare(data)
        assert files(Path(data.path))[NAMES[2]] == llm_c(2)
    else:
        with pytest.raises(UserError, match=rf"{NAMES[2]} of owner/tokens arrives damaged"):
            prepare(data)
        assert not Path(data.path).exists()
        prepare(data)
    assert len(hub.fetched(NAMES[2])) == times + 1


def test_a_file_that_is_damaged_on_the_hub_itself_is_no_data(hub, shards, data):
    (shards / NAMES[1]).write_bytes(llm_c(1)[:-2])
    with pytest.raises(UserError, match=rf"{NAMES[1]} is truncated: 5022 bytes, expected 5024"):
        prepare(data)
    assert not Path(data.path).exists()


def test_small_files_that_are_not_in_lfs_are_verified_too(hub, shards, data, monkeypatch):
    monkeypatch.setattr("hub_server._is_large", lambda path: False)
    assert {len(f.digest) for f in find_repository(hub_name(data.hub)).files} == {40}
    hub.damage = {NAMES[0]: 1}
    prepare(data, 1)
    assert len(hub.fetched(NAMES[0])) == 2


def test_a_disk_that_is_too_small_is_refused_before_anything_is_fetched(
    hub, shards, data, monkeypatch
):
    free = 3 * SIZE - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, free))
    with pytest.raises(UserError, match=r"out.* needs 15\.1 kB, but the disk has 15\.1 kB free"):
        prepare(data, 2 * TOKENS)
    assert hub.fetched(".bin") == []
    prepare(data, TOKENS)


def test_a_disk_that_fills_up_is_told_and_what_arrived_is_kept(hub, shards, data):
    """A limit of a file's size stands for the disk's end: a write that crosses it is cut short."""
    tokens, limits = 2**20, resource.getrlimit(resource.RLIMIT_FSIZE)
    header = struct.pack("<256i", 20240520, 1, tokens, *[0] * 253)
    (shards / NAMES[1]).write_bytes(header + bytes(2 * tokens))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
    try:
        with pytest.raises(UserError, match=r"write .*out: File too large; finished work"):
            prepare(data, TOKENS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    prepare(data, TOKENS)
    assert hub.fetched(NAMES[1]) == ["", f"bytes={2**20}-"]


def test_what_the_hub_says_no_to_is_one_clear_error(hub, shards, data, monkeypatch):
    def said(**changes) -> str:
        with pytest.raises(UserError) as caught:
            prepare(DataConfig(**{"path": data.path, "tokenizer": "bytes", **changes}))
        assert not Path(data.path).exists()
        assert "\n" not in str(caught.value) or isinstance(caught.value, ConfigError)
        return str(caught.value)

    assert "no data set owner/tokns, or it is private: check the spelling, or set HF_TOKEN" in (
        said(hub="owner/tokns")
    )
    assert "owner/tokens has no such revision: check the name after @" in (
        said(hub="owner/tokens@v2")
    )
    assert "name the --tokenizer that made them" in said(hub="owner/tokens", tokenizer=None)
    hub.broken = {NAMES[1]: 403}
    assert "the hub answered 403 about owner/tokens" in (said(hub="owner/tokens"))
    hub.broken, hub.token = {}, "hf_secret"
    assert "or it is private" in said(hub="owner/tokens")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    prepare(data, TOKENS)


def test_another_tokenizer_than_that_of_the_files_is_refused(hub, shards, data):
    (shards / NAMES[1]).write_bytes(llm_c(1)[:-2] + struct.pack("<H", 300))
    with pytest.raises(UserError, match=r"holds token id 300, but bytes ends at 256"):
        prepare(data)
    assert not Path(data.path).exists()


@pytest.mark.slow
def test_the_verb_fetches_what_a_config_names_and_says_why_not(hub, shards, tmp_path, monkeypatch):
    """In processes of their own, as the libraries read their environment when they are loaded."""
    text = (ROOT / "configs" / "tiny.py").read_text()
    text = text.replace('source="stdlib"', 'hub="owner/tokens"')
    (tmp_path / "mine.py").write_text(text)
    mine = ("prepare", "--config", "mine.py", "--tokenizer", "bytes")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = run_verb(*mine, cwd=tmp_path)
    assert "HF_HUB_OFFLINE is set, and owner/tokens is not here yet" in done.stderr
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    monkeypatch.delenv("HF_HUB_OFFLINE")
    done = run_verb(*mine, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "6 of its 6 token files" in done.stdout
    assert "a run of 51,201 tokens reads these 5.1 times" in done.stdout
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody is there
    again = run_verb(*mine, cwd=tmp_path)
    assert (again.returncode, "is complete: owner/tokens at" in again.stdout) == (0, True)
    done = run_verb(*mine, "--out", "other", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "the hub cannot be reached for owner/tokens" in done.stderr
    assert not (tmp_path / "other.preparing").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--hub", "a/b", "--input", "x.txt"], "--input and --hub are two sources"),
        (["--hub", "a/b", "--partition", "0/2"], "--partition and --merge work with files"),
        (["--hub", "a/b", "--merge", "--format", "text"], "not with --hub"),
        (["--hub", "a/b", "--tokens", "0"], "--tokens 0 must be 1 or more"),
        (["--input", "x.txt", "--tokens", "5"], "works only with --hub"),
        (["--hub", "fineweb"], "data.hub must be OWNER/NAME, OWNER/NAME:SUBSET or"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare = importlib.import_module("gptjax.prepare").prepare
    with pytest.raises(ConfigError, match=re.escape(message)):
        prepare([*words, "--out", "out"])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_kills_at_any_moment_lose_nothing_that_arrived(hub, tmp_path):
    """Real ones, of a process that fetches four files at a time over a slow line."""
    repository, tokens, chance = hub.root / "owner" / "tokens", 6 * 2**20, random.Random(0)
    repository.mkdir(parents=True)
    for name in NAMES[:3]:
        raw = struct.pack("<256i", 20240520, 1, tokens, *[0] * 253) + bytes(2 * tokens)
        (repository / name).write_bytes(raw)
    hub.pause = 0.05  # after every 256 kB
    program = """
import sys
from huggingface_hub import constants
from gptjax.config import DataConfig
from gptjax.preparation.fetching import prepare_from_hub
constants.DOWNLOAD_CHUNK_SIZE = 2**18
prepare_from_hub(DataConfig(sys.argv[1], "bytes", hub="owner/tokens"), None, None)
"""
    words = [sys.executable, "-c", program, str(tmp_path / "out")]

    def there() -> int:
        names = ("*.bin", ".*.part")
        files = [p for n in names for p in tmp_path.glob(f"out.preparing/{n}")]
        return sum(p.stat().st_size for p in files)

    before = 0
    for _ in range(3):
        process = subprocess.Popen(words, cwd=ROOT, env=environment_on(1))
        wanted, begun = before + chance.randint(1, 20) * 2**18, time.monotonic()
        while there() < wanted and process.poll() is None and time.monotonic() - begun < 30:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert there() >= wanted
        before = there()
    hub.pause = 0
    asked = len(hub.asked)
    assert subprocess.run(words, cwd=ROOT, env=environment_on(1)).returncode == 0
    ranges = [r for method, path, r in hub.asked[asked:] if method == "GET" and ".bin" in path]
    assert all(r.startswith("bytes=") for r in ranges if r)
    begins = [int(r.removeprefix("bytes=").removesuffix("-")) for r in ranges if r]
    assert sum(begins) == before
    for name in NAMES[:3]:
        assert (tmp_path / "out" / name).read_bytes() == (repository / name).read_bytes()
    assert not list(tmp_path.glob("out.*"))
