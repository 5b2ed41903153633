"""Files of weights: which one counts, and one error for each kind of damage."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from gptjax.base.errors import UserError
from gptjax.conversion.stored_arrays import open_arrays

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float16)}


def write_sharded(path: Path) -> Path:
    files = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    for name, file in files.items():
        save_file({name: ARRAYS[name]}, path / file)
    index = path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    return index


def test_shards_are_one_mapping(tmp_path):
    write_sharded(tmp_path)
    arrays = open_arrays(tmp_path)
    assert {name: array.tolist() for name, array in arrays.items()} == {
        name: array.tolist() for name, array in ARRAYS.items()
    }


def test_an_array_is_read_when_it_is_asked_for(tmp_path, monkeypatch):
    save_file(ARRAYS, tmp_path / "model.safetensors")
    arrays = open_arrays(tmp_path)
    monkeypatch.setattr(type(arrays), "__getitem__", lambda *_: pytest.fail("it was read"))
    assert "a" in arrays
    assert "c" not in arrays
    assert set(arrays) == {"a", "b"}


def test_safetensors_come_before_files_of_torch(tmp_path):
    save_file(ARRAYS, tmp_path / "model.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"never looked at")
    assert len(open_arrays(tmp_path)) == 2


def test_bfloat16_is_read_as_it_is(tmp_path):
    array = np.array([1.5, -3e38, 2e-40], ml_dtypes.bfloat16)
    save_file({"a": array}, tmp_path / "model.safetensors")
    found = open_arrays(tmp_path)["a"]
    assert found.dtype == ml_dtypes.bfloat16
    assert found.tobytes() == array.tobytes()


@pytest.mark.parametrize("kind", ["int8", "float64"])
def test_types_that_float32_does_not_hold_are_refused(tmp_path, kind):
    save_file({"a": np.ones(3, kind)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="save it again in one of these types"):
        open_arrays(tmp_path)["a"]


def test_a_directory_without_weights_says_what_it_has_instead(tmp_path):
    (tmp_path / "tf_model.h5").touch()
    with pytest.raises(UserError, match=r"has no weights.* found only tf_model\.h5"):
        open_arrays(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize(
    ("content", "words"),
    [(POINTER, "is a pointer of git-lfs"), (b"", "model"), (b"<html>Not found</html>", "model")],
    ids=["pointer", "empty", "page"],
)
def test_a_file_that_is_something_else(tmp_path, name, content, words):
    if name.endswith(".bin"):
        pytest.importorskip("torch")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        open_arrays(tmp_path)


def test_every_cut_of_a_file_is_found(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(ARRAYS, path)
    whole = path.read_bytes()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match="damaged or cut short"):
            open_arrays(tmp_path)


def test_a_cut_file_of_torch_is_found(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.ones(1000)}, path)
    whole = path.read_bytes()
    for size in (10, 200, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError):
            open_arrays(tmp_path)


def test_a_shard_that_is_missing_is_named(tmp_path):
    write_sharded(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="not there: model-00002-of-00002"):
        open_arrays(tmp_path)


def test_a_shard_without_its_array_is_named(tmp_path):
    write_sharded(tmp_path)
    save_file({"c": ARRAYS["b"]}, tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(UserError, match=r"00002-of-00002\.safetensors has b, but it has not"):
        open_arrays(tmp_path)


@pytest.mark.parametrize(
    "index",
    ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": "../model.safetensors"}}',
     '{"weight_map": {"a": 3}}', '{"weight_map": 3}'],
)  # fmt: skip
def test_an_index_that_is_none(tmp_path, index):
    write_sharded(tmp_path).write_text(index)
    with pytest.raises(UserError, match="is not an index of weights"):
        open_arrays(tmp_path)
