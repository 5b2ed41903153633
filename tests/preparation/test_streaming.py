"""A data set of the hub, streamed, gives the bytes that its documents give from a file.

The hub is one of this machine (hub_server.py); `datasets` speaks to it as to the real one.
"""

import gzip
import json
import random
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, environment_on
from hub_server import Hub

from gptjax.base.errors import ConfigError, UserError
from gptjax.config import DataConfig
from gptjax.data.manifest import Manifest, read_manifest
from gptjax.preparation.fetching import prepare_from_hub
from gptjax.preparation.hub import streaming
from gptjax.preparation.pipeline import prepare_shards
from gptjax.preparation.sources import HUB, Input, find_inputs
from gptjax.preparation.vocabulary import train_tokenizer

TEXTS = [f"{i:04d} she sells {'sea shells ' * (i * 7 % 40)}\n漢字 🙂\n" for i in range(400)]
RECORDS: list[str | None] = [*TEXTS[:200], "", None, *TEXTS[200:]]
CARD = """---
configs:
- config_name: whole
  default: true
  data_files:
  - {split: train, path: parquet/train-*}
  - {split: test, path: parquet/test-*}
- config_name: first
  data_files: parquet/train-00000*
---
"""


def write_files(root: Path) -> None:
    """The records as Parquet in one data set, with a test split, and as JSON lines in another."""
    for name in ("texts/parquet", "lines"):
        (root / name).mkdir(parents=True)
    for i in range(3):
        part = RECORDS[i * 134 : (i + 1) * 134]
        table = pa.table({"n": [i] * len(part), "text": part, "other": ["x"] * len(part)})
        path = root / "texts" / "parquet" / f"train-{i:05d}-of-00003.parquet"
        pq.write_table(table, path, row_group_size=30)
        lines = "".join(json.dumps({"text": t, "n": i}) + "\n" for t in part)
        (root / "lines" / f"{i}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    test = pa.table({"text": ["held out\n"] * 40})
    pq.write_table(test, root / "texts" / "parquet" / "test-0.parquet")
    (root / "texts" / "README.md").write_text(CARD)


@pytest.fixture
def texts(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import datasets
    from huggingface_hub import HfFileSystem

    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
    write_files(hub.root / "owner")
    HfFileSystem.clear_instance_cache()
    yield
    HfFileSystem.clear_instance_cache()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many parts a stream and many row groups a part, as of a large data set."""
    monkeypatch.setattr(streaming, "STREAM_PART_BYTES", 10_000)
    monkeypatch.setattr(streaming, "GROUP_BYTES", 1_500)


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    return DataConfig(path=str(tmp_path / "out"), hub="owner/texts", val_fraction=0.1)


def streamed(data: DataConfig) -> Manifest:
    return prepare_shards(data, find_inputs(data), shard_tokens=5000)


def from_a_file(directory: Path, records: list[str | None]) -> Manifest:
    directory.mkdir()
    path = directory / "all.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in records))
    return streamed(DataConfig(str(directory / "out"), inputs=(str(path),), val_fraction=0.1))


def contents(manifest: Manifest) -> tuple[dict[str, bytes], dict]:
    files = {p.name: p.read_bytes() for p in manifest.directory.iterdir()}
    table = json.loads(files.pop("manifest.json"))
    assert table.pop("source")
    return files, table


@pytest.mark.usefixtures("texts", "small")
@pytest.mark.parametrize("name", ["owner/texts:whole:train", "owner/lines"])
def test_a_stream_gives_the_bytes_of_a_file(hub, data, tmp_path, name):
    expected = from_a_file(tmp_path / "file", RECORDS)
    assert expected.notes == {"empty": 1, "no_text": 1}
    made = streamed(DataConfig(path=data.path, hub=name, val_fraction=0.1))
    assert contents(made) == contents(expected)
    assert made.source == f"{name} at {hub.commit}"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "hub", "out"]


@pytest.mark.usefixtures("texts")
def test_another_split_or_field_is_another_text(hub, data):
    held_out = DataConfig(path=data.path + "1", hub="owner/texts::test", val_fraction=0)
    assert streamed(held_out).splits["train"].documents == 40
    other = DataConfig(path=data.path + "2", hub="owner/texts", text_field="other", val_fraction=0)
    made = streamed(other)
    assert (made.splits["train"].documents, made.splits["train"].bytes) == (402, 402)
    assert made.source == f"owner/texts (other) at {hub.commit}"


@pytest.mark.usefixtures("texts", "small")
@pytest.mark.parametrize(
    "name", ["owner/texts", pytest.param("owner/lines", marks=pytest.mark.slow)]
)
def test_a_stream_that_breaks_goes_on_after_its_last_part_from_the_same_commit(
    hub, data, tmp_path, name, monkeypatch
):
    expected = contents(from_a_file(tmp_path / "file", RECORDS))
    data = DataConfig(path=data.path, hub=name, val_fraction=0.1)
    opened, written = streaming._open, []

    class Breaks:
        """A stream that breaks when it has given the records of some groups."""

        def __init__(self, inner, left: int):
            self.inner, self.left = inner, left
            self.load_state_dict, self.state_dict = inner.load_state_dict, inner.state_dict

        @property
        def features(self):
            return self.inner.features

        def __iter__(self):
            for i, record in enumerate(self.inner):
                if i == self.left:
                    raise ConnectionError("the cable")
                yield record

    commit = hub.commit
    for left in (130, 150):
        monkeypatch.setattr(streaming, "_open", lambda *a, n=left: Breaks(opened(*a), n))
        with pytest.raises(
            UserError, match=r"cannot be reached .*the cable.*fetched bytes are kept"
        ):
            streamed(data)
        written.append(len(list(tmp_path.glob("out.preparing/inputs/*/*.parquet"))))
    assert 1 <= written[0] < written[1] < 12
    monkeypatch.setattr(streaming, "_open", opened)
    for left in tmp_path.glob("out.preparing/inputs/hub-*"):
        (left / ".part.tmp").write_bytes(b"what a kill left")
    hub.moved_from, hub.commit = commit, "f" * 40
    made = streamed(data)
    assert contents(made) == expected
    assert made.source.endswith(commit)


@pytest.mark.usefixtures("texts", "small")
def test_a_stream_that_is_stored_needs_no_hub(hub, data, tmp_path, monkeypatch, capsys):
    expected = contents(streamed(data))
    shutil.rmtree(data.path)
    source = find_inputs(data)[0]
    streaming.store_stream(source, tmp_path / "out.preparing" / "inputs")
    asked = len(hub.asked)
    monkeypatch.setattr("gptjax.preparation.pipeline.SHARD_TOKENS", 5000)
    prepare_from_hub(data, None, None)
    assert contents(read_manifest(Path(data.path)))[0].keys() >= {"tokenizer.json"}
    prepare_from_hub(data, None, 10**9)
    assert len(hub.asked) == asked
    assert "out is complete: owner/texts at" in capsys.readouterr().out
    assert expected
    with pytest.raises(UserError, match=r"val_fraction was 0\.1, now 0\.05"):
        prepare_from_hub(DataConfig(path=data.path, hub="owner/texts"), None, None)
    with pytest.raises(UserError, match=r"hub was 'owner/texts', now 'owner/texts \(other\)'"):
        prepare_from_hub(
            DataConfig(path=data.path, hub="owner/texts", text_field="other", val_fraction=0.1),
            None, None,
        )  # fmt: skip


@pytest.mark.usefixtures("texts")
def test_sizes_and_disk_are_announced_and_a_small_disk_refused(hub, data, monkeypatch, capsys):
    files = (hub.root / "owner" / "texts" / "parquet").glob("train-*")
    size = sum(p.stat().st_size for p in files)
    free = 10 * size
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, free))
    with pytest.raises(UserError, match=r"out needs .* kB, but the disk has .* kB free: make room"):
        prepare_from_hub(data, None, None)
    free *= 2
    prepare_from_hub(data, None, None)
    said = capsys.readouterr().out
    assert f"owner/texts: 3 files of {size / 1000:.1f} kB to read: 1 min at 100 Mbit/s" in said
    assert re.search(r"about [\d.]+ kB of the [\d.]+ kB free", said)


@pytest.mark.usefixtures("texts")
@pytest.mark.slow
def test_what_there_is_not_is_named_with_what_there_is(hub, data, monkeypatch):
    def said(tokens: int | None = None, **changes) -> str:
        with pytest.raises(UserError) as caught:
            prepare_from_hub(DataConfig(**{"path": data.path, **changes}), tokens, None)
        assert list(Path(data.path).parent.iterdir()) == [hub.root]
        return str(caught.value)

    assert "'en' not found" in said(hub="owner/texts:en")
    assert "owner/texts has no split dev; it has train, test" in said(hub="owner/texts::dev")
    assert "has no field 'body'; its fields are n, text, other: name the one with the text" in (
        said(hub="owner/texts", text_field="body")
    )
    assert "has no field 'body'; its fields are text, n" in (
        said(hub="owner/lines", text_field="body")
    )
    assert "--tokens needs ready token files" in said(tokens=5, hub="owner/texts")
    (hub.root / "owner" / "card").mkdir()
    (hub.root / "owner" / "card" / "README.md").write_text("---\nlicense: mit\n---\n")
    assert "doesn't contain any data files" in said(hub="owner/card")
    hub.broken = {"train-00001-of-00003.parquet": 403}
    assert "the hub answered 403 about owner/texts" in said(hub="owner/texts")
    hub.commit = secrets.token_hex(20)  # of which nothing is known yet
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "datasets", None)
        assert "owner/texts needs datasets: pip install 'gptjax[hub]'" in said(hub="owner/texts")
        patch.setitem(sys.modules, "huggingface_hub", None)
        assert "owner/texts needs huggingface_hub: pip" in said(hub="owner/texts")
    hub.broken, hub.token = {}, "hf_secret"
    assert "or it is private" in said(hub="owner/texts")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    prepare_from_hub(data, None, None)


@pytest.mark.usefixtures("texts")
def test_a_tokenizer_is_trained_on_a_stream(hub, tmp_path):
    made = train_tokenizer([Input(Path("owner/texts"), HUB)], 270, tmp_path / "tok.json")
    assert b" she sells sea".decode() in made.decode(made.encode("0 she sells sea"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hub", "tok.json"]


def test_partitions_are_for_files(data):
    from gptjax.preparation.pipeline import prepare_partition
    from gptjax.preparation.units import Partition

    with pytest.raises(ConfigError, match="--partition does not work with standard input"):
        prepare_partition(data, find_inputs(data), Partition(0, 2))


PROGRAM = """
import sys, time
from gptjax.config import DataConfig
from gptjax.preparation.hub import streaming
from gptjax.preparation.pipeline import prepare_shards
from gptjax.preparation.sources import find_inputs

streaming.STREAM_PART_BYTES, streaming.GROUP_BYTES = 4_000, 1_500
data = DataConfig(sys.argv[1], hub="owner/texts", val_fraction=0.1)
pause = float(sys.argv[2])
prepare_shards(data, find_inputs(data), lambda *_: time.sleep(pause), shard_tokens=5000)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("texts")
def test_kills_at_any_moment_change_nothing(hub, data, tmp_path):
    expected, chance = contents(from_a_file(tmp_path / "file", RECORDS)), random.Random(0)
    environment, stored = {**environment_on(1), "HF_HOME": str(tmp_path / "home")}, [0]

    def start(pause: float) -> subprocess.Popen:
        words = [sys.executable, "-c", PROGRAM, str(data.path), str(pause)]
        return subprocess.Popen(words, cwd=ROOT, env=environment)

    def parts() -> int:
        return len(list(tmp_path.glob("out.preparing/inputs/*/*.parquet")))

    for _ in range(4):
        process, wanted, begun = start(0.02), stored[-1] + chance.randint(1, 3), time.monotonic()
        while parts() < wanted and process.poll() is None and time.monotonic() - begun < 30:
            time.sleep(0.002)
        time.sleep(chance.random() * 0.1)
        process.send_signal(signal.SIGKILL)
        process.wait()
        stored.append(parts())
    assert stored == sorted(stored)
    assert stored[-1] >= 4
    assert start(0).wait() == 0
    assert contents(read_manifest(Path(data.path))) == expected
    assert not list(tmp_path.glob("out.*"))
