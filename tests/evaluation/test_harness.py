"""Our backend, lm-evaluation-harness's `hf` backend and our own evaluations give the same numbers."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lm_eval")
pytest.importorskip("accelerate")  # which the backend hf imports
pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

from evaluation.shaped_tests import (
    as_huggingface,
    hellaswag_rows,
    lambada_rows,
    made_run,
    wikitext_rows,
    write_rows,
)

from gptjax.evaluation.harness import harness_model
from gptjax.evaluation.harness_tasks import write_local_task
from gptjax.evaluation.registry import EVALUATIONS, Figures
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
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-4)
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


def test_three_ways_to_measure_give_the_same_numbers(tmp_path):
    run = made_run()
    same_numbers(run, as_huggingface(run, tmp_path / "hf"), 20, tmp_path)
