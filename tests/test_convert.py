"""The verb `convert`, as users call it: what it prints, writes, and refuses."""

import hashlib
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from conftest import run_verb
from prepared_models import CFG, write_huggingface_model, write_llmc_model

from gptjax.base.errors import ConfigError, UserError
from gptjax.base.tree import named_leaves
from gptjax.conversion.opening import load_run
from gptjax.convert import convert
from gptjax.generate import generate


def bytes_of(run: Path) -> dict[str, str]:
    found = named_leaves(load_run(run).params)
    return {n: hashlib.sha256(np.asarray(x).tobytes()).hexdigest() for n, x in found.items()}


def test_a_model_comes_in_and_says_what_it_is(tmp_path, capsys):
    hf, run = write_huggingface_model(tmp_path / "hf"), tmp_path / "run"
    assert convert(["--from", str(hf), "--out", str(run)]) == 0
    printed = capsys.readouterr().out
    assert "2 layers, 2 heads, 8 wide, context 32" in printed
    assert f"--train.init-from {run}" in printed
    assert load_run(run).config.model.n_layer == CFG.n_layer


def test_the_same_model_twice_is_the_same(tmp_path):
    hf = write_huggingface_model(tmp_path / "hf")
    for name in ("one", "two"):
        convert(["--from", str(hf), "--out", str(tmp_path / name)])
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two") == bytes_of(hf)


@pytest.mark.slow
def test_a_directory_and_its_run_write_the_same_text(tmp_path, capsys):
    hf, run = write_huggingface_model(tmp_path / "hf"), tmp_path / "run"
    convert(["--from", str(hf), "--out", str(run)])
    capsys.readouterr()
    texts = []
    for path in (hf, run):
        assert generate(["--run", str(path), "--prompt", "ab", "--max-new-tokens", "4"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert texts[0].startswith("ab")


def test_llm_c_s_file_comes_in_with_its_tokenizer(tmp_path):
    model = write_llmc_model(tmp_path / "llmc")
    argv = ["--from", str(model), "--tokenizer", "bytes", "--out", str(tmp_path / "run")]
    assert convert(argv) == 0
    hf = write_huggingface_model(tmp_path / "hf")
    assert bytes_of(tmp_path / "run") == bytes_of(hf)


@pytest.mark.parametrize(
    ("argv", "count"),
    [
        ([], 2),
        (["--from", "a", "--run", "b", "--out", "c"], 1),
        (["--from", "a", "--to", "llmc", "--dtype", "bfloat16", "--averaged"], 4),
        (["--run", "a", "--kind", "llmc", "--tokenizer", "gpt2"], 4),
    ],
)
def test_flags_that_are_missing_or_conflict_are_listed_together(argv, count):
    with pytest.raises(ConfigError) as caught:
        convert(argv)
    assert len(caught.value.problems) == count


def spoil(path: Path, how: str) -> Path:
    """A Hugging Face directory with one thing wrong."""
    settings = {"llama": {"model_type": "llama"}, "activation": {"activation_function": "relu"}}
    write_huggingface_model(path, **settings.get(how, {}))
    weights = path / "model.safetensors"
    if how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "tokenizer":
        (path / "tokenizer.json").write_text('{"name": "chars", "alphabet": "abc"}')
    elif how == "no weights":
        weights.unlink()
    elif how == "pointer":
        weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n")
    elif how == "no config":
        (path / "config.json").unlink()
    elif how == "config":
        (path / "config.json").write_text("{")
    return path


@pytest.mark.parametrize(
    "how",
    [
        "llama",
        "activation",
        "truncated",
        "tokenizer",
        "no weights",
        "pointer",
        "no config",
        "config",
    ],
)
def test_a_model_that_cannot_come_in_leaves_nothing_behind(tmp_path, how):
    model = spoil(tmp_path / "hf", how)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError):
        convert(["--from", str(model), "--out", str(tmp_path / "run")])
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_or_the_source_itself_is_not_overwritten(tmp_path):
    hf, run = write_huggingface_model(tmp_path / "hf"), tmp_path / "run"
    with pytest.raises(UserError, match="not empty"):
        convert(["--from", str(hf), "--out", str(hf)])
    convert(["--from", str(hf), "--out", str(run)])
    with pytest.raises(UserError, match="is a run of gptjax already"):
        convert(["--from", str(run), "--out", str(tmp_path / "again")])


def test_a_mistake_is_one_message_without_a_traceback(tmp_path):
    done = run_verb(
        "convert", "--from", spoil(tmp_path / "hf", "llama"), "--out", "run", cwd=tmp_path
    )
    assert done.returncode == 1
    assert not (tmp_path / "run").exists()
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("to", ["huggingface", "llmc"])
def test_a_run_goes_out_and_comes_back_bitwise(tmp_path, to, capsys):
    pytest.importorskip("tokenizers")
    first, there, back = tmp_path / "first", tmp_path / "there", tmp_path / "back"
    convert(["--from", str(write_huggingface_model(tmp_path / "hf")), "--out", str(first)])
    assert convert(["--run", str(first), "--to", to, "--out", str(there)]) == 0
    assert f"wrote {there}" in capsys.readouterr().out
    assert convert(["--from", str(there), "--out", str(back)]) == 0
    assert bytes_of(back) == bytes_of(first)
    assert load_run(back).tokenizer.to_json() == load_run(first).tokenizer.to_json()


def test_bfloat16_goes_out_rounded(tmp_path):
    pytest.importorskip("tokenizers")
    hf, half = write_huggingface_model(tmp_path / "hf"), tmp_path / "half"
    argv = ["--run", str(hf), "--to", "huggingface", "--dtype", "bfloat16", "--out", str(half)]
    assert convert(argv) == 0
    whole, rounded = named_leaves(load_run(hf).params), named_leaves(load_run(half).params)
    for name, x in whole.items():
        expected = np.asarray(x).astype(ml_dtypes.bfloat16).astype(np.float32)
        np.testing.assert_array_equal(np.asarray(rounded[name]), expected, err_msg=name)
