"""The format of a path is found out, or there is one clear error."""

from pathlib import Path

import pytest
from prepared_models import write_huggingface_model, write_llmc_model

from gptjax.base.errors import UserError
from gptjax.conversion.kinds import FORMATS, find_kind, read_model


@pytest.fixture
def every_kind(tmp_path: Path) -> dict[str, Path]:
    """A path of each kind, as far as it can be recognised."""
    torch = pytest.importorskip("torch")
    places = {name: tmp_path / name for name in FORMATS}
    write_huggingface_model(places["huggingface"])
    places["openai"].mkdir()
    (places["openai"] / "params_shapes.json").write_text("[]")
    places["nanogpt"].mkdir()
    torch.save({"model_args": {"block_size": 4}}, places["nanogpt"] / "ckpt.pt")
    write_llmc_model(places["llmc"])
    return places


def test_each_format_is_recognised_and_no_other(every_kind):
    for name, path in every_kind.items():
        assert [kind for kind, known in FORMATS.items() if known.is_at(path)] == [name]
        assert find_kind(path) == name


def test_rubbish_is_recognised_as_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "page.bin").write_bytes(b"<html>")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    for name in ("empty", "page.bin", "broken"):
        assert not any(known.is_at(tmp_path / name) for known in FORMATS.values())
        with pytest.raises(UserError, match="holds no model that gptjax can read"):
            find_kind(tmp_path / name)
    assert not any(known.is_at(tmp_path / "nothing") for known in FORMATS.values())


def test_two_kinds_in_one_place_need_a_word(tmp_path):
    write_huggingface_model(tmp_path)
    write_llmc_model(tmp_path)
    with pytest.raises(UserError, match="say which one with --kind huggingface or --kind llmc"):
        find_kind(tmp_path)
    assert find_kind(tmp_path, "llmc") == "llmc"
    assert read_model(str(tmp_path), "huggingface").model.n_embd == 8


def test_a_pointer_is_told(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n")
    with pytest.raises(UserError, match="pointer of git-lfs"):
        find_kind(path)


def test_the_file_of_weights_stands_for_no_model(tmp_path):
    write_huggingface_model(tmp_path)
    with pytest.raises(UserError, match=f"give its directory, {tmp_path}"):
        find_kind(tmp_path / "model.safetensors")


def test_a_path_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"there is no /.*/nothing: give a file or a directory"):
        read_model(str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="there is no runs/nothing on this machine, and the hub"):
        read_model("runs/nothing")
