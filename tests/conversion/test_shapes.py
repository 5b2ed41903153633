"""The shape of a model is read from its run alone: no parameters, no jax."""

import pytest
from prepared_models import CFG, write_huggingface_model, write_llmc_model

from gptjax.base.errors import UserError
from gptjax.config.presets import load_config
from gptjax.conversion.shapes import read_source
from gptjax.runs.directory import RunDir
from gptjax.tokenizers.plain import ByteTokenizer, collect_characters

TINY = load_config("tiny")


@pytest.mark.parametrize("suffix", ["", "@best", "@latest", "@12"])
def test_a_run_gives_its_shape_and_the_name_of_its_tokenizer(tmp_path, suffix):
    RunDir(tmp_path).begin(TINY, ByteTokenizer())
    (tmp_path / "checkpoints" / "12").mkdir(parents=True)
    source = read_source(f"{tmp_path}{suffix}")
    assert (source.model, source.tokenizer_name) == (TINY.model, "bytes")


def test_a_tokenizer_without_a_name_of_its_own_is_its_file(tmp_path):
    RunDir(tmp_path).begin(TINY, collect_characters(["abc"]))
    (tmp_path / "checkpoints" / "12").mkdir(parents=True)
    assert read_source(str(tmp_path)).tokenizer_name == str(tmp_path / "tokenizer.json")


def test_a_hugging_face_directory_gives_its_shape(tmp_path):
    source = read_source(str(write_huggingface_model(tmp_path / "hf")))
    assert (source.model, source.tokenizer_name) == (CFG, "bytes")


@pytest.mark.parametrize("name", ["nothing", "nothing@best", "file"])
def test_what_is_no_model_is_named(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"there is no model in .*, or a Hugging Face directory"):
        read_source(f"{tmp_path}/{name}")


def test_a_checkpoint_that_is_not_there_is_named_before_anything_is_made(tmp_path):
    run_dir = RunDir(tmp_path / "run")
    run_dir.path.mkdir()
    run_dir.begin(TINY, ByteTokenizer())
    with pytest.raises(UserError, match=r"there is no checkpoint in .* yet"):
        read_source(str(run_dir.path))
    (run_dir.checkpoints / "12").mkdir(parents=True)
    with pytest.raises(UserError, match=r"no checkpoint '3' in .* latest or one of 12$"):
        read_source(f"{run_dir.path}@3")


def test_a_step_of_a_hugging_face_directory_is_refused_as_everywhere(tmp_path):
    write_huggingface_model(tmp_path / "hf")
    assert read_source(f"{tmp_path}/hf@latest").model == CFG
    with pytest.raises(UserError, match="has no step 2"):
        read_source(f"{tmp_path}/hf@2")


def test_a_model_of_another_form_is_named_with_the_command_that_converts_it(tmp_path, monkeypatch):
    path = write_llmc_model(tmp_path / "llmc")
    command = "python -m gptjax.convert --from {} --out RUN"
    for place in (path, path / "model.bin"):
        with pytest.raises(UserError, match=r"a model of llm\.c .* not a run: convert") as caught:
            read_source(str(place))
        assert command.format(place) in str(caught.value)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="hub, fetch it with") as caught:
        read_source("openai-community/gpt2")
    assert command.format("openai-community/gpt2") in str(caught.value)
    with pytest.raises(UserError) as caught:
        read_source("llmc/gpt2")  # beside a directory that is there
    assert "convert" not in str(caught.value)


def test_an_empty_name_is_told():
    with pytest.raises(UserError, match="the name of the model is empty"):
        read_source("")
