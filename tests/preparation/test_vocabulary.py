"""A trained tokenizer is one JSON file, which preparations and runs then share."""

import gzip
import json
import os
import re
from pathlib import Path

import pytest
from conftest import run_verb

from gptjax.base.errors import UserError
from gptjax.config import DataConfig
from gptjax.data.corpus import require_vocabulary
from gptjax.data.manifest import read_tokenizer
from gptjax.preparation.pipeline import prepare_partition, prepare_shards
from gptjax.preparation.sources import find_inputs, text_files
from gptjax.preparation.units import Partition
from gptjax.preparation.vocabulary import train_tokenizer
from gptjax.tokenizers.bpe import BPETokenizer, train_bpe
from gptjax.tokenizers.registry import fingerprint, read_tokenizer_file


@pytest.fixture
def made(text_file: Path, tmp_path: Path) -> BPETokenizer:
    return train_tokenizer(text_files([str(text_file)]), 300, tmp_path / "made" / "tok.json")


def data_with(tokenizer: Path, text_file: Path, out: Path) -> DataConfig:
    return DataConfig(str(out), str(tokenizer), None, (str(text_file),), 0.1)


def test_it_is_the_tokenizer_of_all_the_text(made: BPETokenizer, text_file: Path, tmp_path: Path):
    assert fingerprint(made) == fingerprint(train_bpe([text_file.read_text()], 300))
    assert fingerprint(read_tokenizer_file(tmp_path / "made" / "tok.json")) == fingerprint(made)


def test_text_may_come_as_compressed_records(made: BPETokenizer, text_file: Path, tmp_path: Path):
    lines = [json.dumps({"text": line}) for line in ("", text_file.read_text())]
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    inputs = find_inputs(DataConfig(inputs=(str(tmp_path / "a.jsonl.gz"),)))
    tokenizer = train_tokenizer(inputs, 300, tmp_path / "records" / "tok.json")
    assert fingerprint(tokenizer) == fingerprint(made)
    assert os.listdir(tmp_path / "records") == ["tok.json"]
    (tmp_path / "b.jsonl").write_text("no record\n")
    inputs = find_inputs(DataConfig(inputs=(str(tmp_path / "b.jsonl"),)))
    with pytest.raises(UserError, match="no text in the input: 1 lines that are not JSON"):
        train_tokenizer(inputs, 300, tmp_path / "empty" / "tok.json")


@pytest.mark.parametrize("name", ["made/tok.json", "tok.txt", "file/tok.json"])
def test_it_overwrites_nothing_and_says_where_it_cannot_write(
    made: BPETokenizer, text_file: Path, tmp_path: Path, name: str
):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=re.escape(str(tmp_path / name))):
        train_tokenizer(text_files([str(text_file)]), 300, tmp_path / name)


def test_data_prepared_with_it_knows_it_by_its_content(
    made: BPETokenizer, text_file: Path, tmp_path: Path
):
    path = tmp_path / "made" / "tok.json"
    data = data_with(path, text_file, tmp_path / "out")
    manifest = prepare_shards(data, text_files(data.inputs))
    assert (manifest.tokenizer, manifest.n_vocab) == ("bpe:300", 300)
    assert fingerprint(read_tokenizer(manifest)) == fingerprint(made)
    for said in (str(path), "bpe:300", None):
        assert require_vocabulary(manifest, None, said) == 300
    path = path.rename(tmp_path / "moved.json")
    moved = data_with(path, text_file, tmp_path / "out")
    assert prepare_shards(moved, text_files(data.inputs)) == manifest  # nothing is prepared again
    path.write_text(train_bpe([text_file.read_text()], 299).to_json())
    with pytest.raises(UserError, match=r"holds data .*tokenizer was"):
        prepare_shards(moved, text_files(data.inputs))
    with pytest.raises(UserError, match="was tokenised with bpe:300"):
        require_vocabulary(manifest, None, str(path))


def test_partitions_share_it_and_refuse_one_that_has_changed(
    made: BPETokenizer, text_file: Path, tmp_path: Path
):
    path = tmp_path / "made" / "tok.json"
    whole = data_with(path, text_file, tmp_path / "whole")
    shared = data_with(path, text_file, tmp_path / "shared")
    documents = text_files(whole.inputs)
    manifest = prepare_shards(whole, documents)
    for index in range(2):
        prepare_partition(shared, documents, Partition(index, 2))
    table = path.read_text()
    path.write_text(train_bpe([text_file.read_text()], 299).to_json())
    with pytest.raises(UserError, match=r"holds work .*tokenizer was"):
        prepare_shards(shared, documents, merge=True)
    path.write_text(table)
    assert prepare_shards(shared, documents, merge=True).splits == manifest.splits


@pytest.mark.slow
def test_the_verb_trains_one_and_prepares_with_it(text_file: Path, tmp_path: Path):
    train = ["--train-tokenizer", "--input", text_file, "--vocab-size"]
    done = run_verb("prepare", *train, 320, "--out", "tok.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"tok\.json: 320 tokens, [2-9]\.\d\d bytes per token", done.stdout)
    prepared = ["--tokenizer", "tok.json", "--input", text_file, "--out", "data"]
    assert run_verb("prepare", *prepared, cwd=tmp_path).returncode == 0
    refused = run_verb("prepare", *train, 5, "--out", "other.json", cwd=tmp_path)
    assert (refused.returncode, "257 or more" in refused.stderr) == (2, True), refused.stderr
