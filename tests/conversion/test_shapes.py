"""The shape of a model is read from its run alone: no parameters, no jax."""

import pytest
from prepared_models import CFG, write_huggingface_model

from gptjax.base.errors import UserError
from gptjax.config.presets import load_config
from gptjax.conversion.shapes import read_source
from gptjax.runs.directory import RunDir
from gptjax.tokenizers.plain import ByteTokenizer, collect_characters

TINY = load_config("tiny")


@pytest.mark.parametrize("suffix", ["", "@best", "@latest", "@12"])
def test_a_run_gives_its_shape_and_the_name_of_its_tokenizer(tmp_path, suffix):
    RunDir(tmp_path).begin(TINY, ByteTokenizer())
    source = read_source(f"{tmp_path}{suffix}")
    assert (source.model, source.tokenizer_name) == (TINY.model, "bytes")


def test_a_tokenizer_without_a_name_of_its_own_is_its_file(tmp_path):
    RunDir(tmp_path).begin(TINY, collect_characters(["abc"]))
    assert read_source(str(tmp_path)).tokenizer_name == str(tmp_path / "tokenizer.json")


def test_a_hugging_face_directory_gives_its_shape(tmp_path):
    source = read_source(str(write_huggingface_model(tmp_path / "hf")))
    assert (source.model, source.tokenizer_name) == (CFG, "bytes")


@pytest.mark.parametrize("name", ["nothing", "nothing@best", "file"])
def test_what_is_no_model_is_named(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"there is no model in .*, or a Hugging Face directory"):
        read_source(f"{tmp_path}/{name}")
