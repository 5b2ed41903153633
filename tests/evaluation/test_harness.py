"""Our backend, lm-evaluation-harness's `hf` backend and our evaluations give the same numbers."""

import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import run_verb

pytest.importorskip("lm_eval")
pytest.importorskip("accelerate")  # which the backend hf imports
pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

from shaped_tests import (
    as_huggingface,
    hellaswag_rows,
    lambada_rows,
    made_run,
    wikitext_rows,
    write_rows,
)

from gptjax.base.errors import UserError
from gptjax.conversion.opening import load_run
from gptjax.evaluation.estimates import Figures
from gptjax.evaluation.harness import harness_model
from gptjax.evaluation.harness_tasks import run_harness, write_local_task
from gptjax.evaluation.registry import EVALUATIONS
from gptjax.evaluation.scoring import Scorer
from gptjax.evaluation.setting import Setting
from gptjax.generation.loaded import LoadedRun

ROWS = {"hellaswag": hellaswag_rows, "lambada_openai": lambada_rows, "wikitext": wikitext_rows}


def many(run: LoadedRun) -> Scorer:
    """A scorer with large batches: few shapes to compile."""
    return Scorer(run.config.model, run.params, batch_rows=40)


def quiet(total: int, unit: str) -> Any:
    return nullcontext(lambda done: None)


def run_tasks(model: Any, tasks: Path) -> dict[str, Any]:
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    found = lm_eval.simple_evaluate(
        model=model, tasks=list(ROWS), task_manager=manager, bootstrap_iters=0
    )
    assert found is not None
    return found


def prepared_tasks(count: int, out: Path) -> dict[str, Path]:
    files = {task: write_rows(out / f"{task}.jsonl", make(count)) for task, make in ROWS.items()}
    for task, file in files.items():
        write_local_task(task, str(file), out / "tasks")
    return files


def hf_model(directory: Path) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(directory), device="cpu", dtype="float32", batch_size=8)


def same_numbers(run: LoadedRun, directory: Path, count: int, out: Path) -> None:
    files = prepared_tasks(count, out)
    ours, theirs = (
        run_tasks(m, out / "tasks") for m in (harness_model(run, many(run)), hf_model(directory))
    )
    for task in ROWS:
        for a, b in zip(ours["samples"][task], theirs["samples"][task], strict=True):
            assert a["arguments"] == b["arguments"]
            one, other = np.array(a["filtered_resps"], float), np.array(b["filtered_resps"], float)
            # a page has a thousand nats and more, of which float32 shows steps of 1e-4
            np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-4)
    measured = {task: measure(run, task, file) for task, file in files.items()}
    for task, names in {
        "hellaswag": ("acc", "acc_norm", "acc_stderr", "acc_norm_stderr"),
        "lambada_openai": ("acc", "perplexity", "acc_stderr"),
        "wikitext": ("word_perplexity", "byte_perplexity", "bits_per_byte"),
    }.items():
        assert measured[task].get("items", count) == count
        for name in names:
            key = name.replace("_stderr", "_stderr,none") if "stderr" in name else f"{name},none"
            expected = theirs["results"][task][key]
            if expected != "N/A":
                assert measured[task][name] == pytest.approx(expected, rel=1e-5), (task, name)


def measure(run: LoadedRun, task: str, file: Path) -> Figures:
    name = "lambada" if task == "lambada_openai" else task
    return EVALUATIONS[name].measure(Setting(run, many(run), str(file), bar=quiet))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[LoadedRun, Path]:
    """A run, and the same as a Hugging Face directory."""
    run = made_run()
    return run, as_huggingface(run, tmp_path_factory.mktemp("made") / "hf")


@pytest.mark.slow
def test_three_ways_to_measure_give_the_same_numbers(made, tmp_path):
    same_numbers(*made, 20, tmp_path)


@pytest.mark.slow
def test_generated_answers_are_those_of_the_hf_backend(made):
    run, directory = made
    words = lambada_rows(4)[1:]
    wishes = {"until": [" ", "\n"], "max_gen_toks": 6, "do_sample": False}
    wanted = [{**wishes, "until": []}, wishes, {**wishes, "until": "e"}]
    requests = [
        SimpleNamespace(args=(row["text"][:60], each))
        for row, each in zip(words, wanted, strict=True)
    ]
    ours, theirs = (
        model.generate_until(requests, disable_tqdm=True)
        for model in (harness_model(run, many(run)), hf_model(directory))
    )
    assert ours == theirs
    assert len(ours[1]) < len(ours[0])
    assert "e" not in ours[2]


def test_words_after_lm_eval_go_to_its_command_line(made, tmp_path, monkeypatch):
    from lm_eval import __main__ as command
    from lm_eval.api.registry import get_model

    run, seen = made[0], {}

    def cli() -> None:
        seen["argv"] = list(sys.argv)
        seen["model"] = get_model("gptjax").create_from_arg_obj({}, {"batch_size": 3})
        seen["tasks"] = [
            p.name for p in Path(sys.argv[sys.argv.index("--include_path") + 1]).iterdir()
        ]

    monkeypatch.setattr(command, "cli_evaluate", cli)
    before, data = list(sys.argv), write_rows(tmp_path / "l.jsonl", lambada_rows(2))
    scorer = many(run)
    run_harness(run, scorer, f"lambada_openai={data}", ["--tasks", "lambada_openai"])
    assert sys.argv == before
    assert seen["argv"][:5] == ["lm-eval", "--model", "gptjax", "--batch_size", "40"]
    assert seen["argv"][-2:] == ["--tasks", "lambada_openai"]
    assert seen["model"].scorer is scorer
    assert seen["tasks"] == ["lambada_openai.yaml"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("", ["--model", "hf"]),
        ("", ["--batch_size=2"]),
        ("hellaswag", []),
        ("hellaswag=missing.jsonl", []),
        ("no_such_task=SELF", []),
        ("hellaswag=SELF", ["--include_path", "here"]),
    ],
)
def test_words_and_data_that_cannot_be_used_are_refused(made, data, words):
    with pytest.raises(UserError):
        run_harness(made[0], many(made[0]), data.replace("SELF", __file__), words)


@pytest.mark.slow
def test_a_trained_run_measures_the_same_in_three_ways(tmp_path):
    short = [
        f"--train.{field}=60" for field in ("max-steps", "eval-every-steps", "save-every-steps")
    ]
    short += ["--optim.warmup-steps", 10, "--run-dir", "run"]
    done = run_verb("train", "--config", "quickstart", *short, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = load_run(tmp_path / "run")
    same_numbers(run, as_huggingface(run, tmp_path / "hf"), 200, tmp_path)
