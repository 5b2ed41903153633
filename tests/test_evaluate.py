"""The verb: the table goes to standard output, JSON where --json says, notes to standard error."""

import json
from pathlib import Path

import pytest
from conftest import run_verb

from gptjax.base.errors import ConfigError, UserError
from gptjax.evaluate import evaluate
from gptjax.evaluation.options import EvaluateCommand, check_flags
from gptjax.evaluation.registry import EVALUATIONS
from gptjax.runs.directory import RunDir
from gptjax.runs.metrics import read_rows

CONTEXT = 48  # shorter than the position table


@pytest.fixture(scope="module")
def run(tmp_path_factory, prepared) -> Path:
    """A run of a few steps that validated on 30 windows."""
    cwd = tmp_path_factory.mktemp("evaluate")
    settings = {
        "config": "tiny", "data.path": prepared.directory.resolve(), "run-dir": "run",
        "train.max-steps": 6, "train.eval-every-steps": 6, "train.eval-tokens": 30 * CONTEXT,
        "train.context": CONTEXT, "train.batch-tokens": 8 * CONTEXT, "optim.warmup-steps": 1,
        "model.dtype": "float32", "model.unroll": 1,
    }  # fmt: skip
    trained = run_verb("train", *(f"--{k}={v}" for k, v in settings.items()), cwd=cwd)
    assert trained.returncode == 0, trained.stderr
    return cwd / "run"


@pytest.fixture
def measured(run, tmp_path, capsys):
    """Call the verb in this process: its figures, its standard output, its standard error."""

    def measure(*argv: object) -> tuple[dict, str, str]:
        out = tmp_path / "out.json"
        words = ["--run", run, "--json", out, *argv]
        assert evaluate([str(word) for word in words]) == 0
        said = capsys.readouterr()
        return json.loads(out.read_text()), said.out, said.err

    return measure


def test_a_runs_own_validation_loss_comes_out(run, measured, prepared):
    row = read_rows(RunDir(run).metrics)[-1]
    figures, table, _ = measured("--data", prepared.directory, "--limit", 30)
    assert figures["tokens"] == 30 * CONTEXT
    assert figures["loss"] == pytest.approx(row["val_loss"], abs=1e-5)
    assert figures["stderr"] == pytest.approx(row["val_stderr"], rel=1e-3)
    assert figures["bits_per_byte"] == pytest.approx(row["val_bits_per_byte"], abs=2e-5)
    assert f"{figures['loss']:.4f}" in table
    assert figures["conditions"]["context"] == CONTEXT
    whole, _, _ = measured("--data", prepared.directory)
    assert whole["tokens"] == prepared.splits["val"].tokens - 1


def test_a_text_is_measured_and_flags_without_effect_are_noted(measured, text_file, tmp_path):
    figures, _, _ = measured("--data", text_file, "--limit", 3, "--stride", 10)
    assert figures["tokens"] == 30
    pages = tmp_path / "wiki.test.raw"
    pages.write_text(" = A = \n a page . \n = B = \n another page . \n")
    figures, _, notes = measured("--on", "wikitext", "--data", pages, "--limit", 1, "--stride", 10)
    assert figures["pages"] == 1
    assert figures["word_perplexity"] > figures["byte_perplexity"] > 1
    assert "--stride" in notes


def test_wrong_flags_are_listed_together(tmp_path):
    command = EvaluateCommand(on="perplexty", stride=0, batch=-1, json=tmp_path)
    with pytest.raises(ConfigError) as caught:
        check_flags(command, is_harness=False)
    text = str(caught.value)
    assert "did you mean perplexity?" in text
    assert len(caught.value.problems) == 5
    assert all(flag in text for flag in ("--data", "--stride", "--batch", "--json"))


@pytest.mark.parametrize("flags", [["--stride", CONTEXT + 1], ["--context", 65]])
def test_windows_beyond_the_model_are_refused(run, text_file, flags):
    words = ["--run", run, "--data", text_file, *flags]
    with pytest.raises(ConfigError, match=flags[0]):
        evaluate([str(word) for word in words])


def test_nothing_is_written_if_nothing_is_measured(run, tmp_path):
    words = ["--run", run, "--data", tmp_path / "none.txt", "--json", tmp_path / "out.json"]
    with pytest.raises(UserError, match=r"none\.txt"):
        evaluate([str(word) for word in words])
    assert list(tmp_path.iterdir()) == []


def test_the_help_names_every_evaluation():
    fields = EvaluateCommand.__dataclass_fields__
    source = Path(__file__).parent.parent / "gptjax" / "evaluation" / "options.py"
    assert all(name in source.read_text() for name in EVALUATIONS)
    assert all(set(row.reads) <= set(fields) for row in EVALUATIONS.values())
