"""lm-evaluation-harness scores a live server as it scores the run itself."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

for needed in ("lm_eval", "transformers", "tokenizers", "tenacity", "aiohttp"):
    pytest.importorskip(needed)

from served import Served, served
from shaped_tests import as_huggingface, hellaswag_rows, made_run, write_rows

from gptjax.evaluation.harness import harness_model
from gptjax.evaluation.harness_tasks import write_local_task
from gptjax.evaluation.hellaswag import measure_hellaswag
from gptjax.evaluation.scoring import Scorer
from gptjax.evaluation.setting import Setting

pytestmark = pytest.mark.slow
ITEMS, CONTEXT = 12, 256


def api_model(server: Served, directory: Path, **settings: int) -> Any:
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    return LocalCompletionsAPI(
        base_url=f"{server.url}/v1/completions", model=directory.name, tokenizer=str(directory),
        tokenizer_backend="huggingface", max_length=CONTEXT, **settings,
    )  # fmt: skip


def hellaswag(model: Any, tasks: Path) -> Any:
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    found = lm_eval.simple_evaluate(
        model=model, tasks=["hellaswag"], task_manager=manager, bootstrap_iters=0
    )
    assert found is not None
    return found


def test_hellaswag_over_http_is_that_of_evaluate(tmp_path):
    run = made_run(n_ctx=CONTEXT)
    directory = as_huggingface(run, tmp_path / "model")
    file = write_rows(tmp_path / "hellaswag.jsonl", hellaswag_rows(ITEMS))
    write_local_task("hellaswag", str(file), tmp_path / "tasks")
    scorer = Scorer(run.config.model, run.params, batch_rows=40)
    ours = hellaswag(harness_model(run, scorer), tmp_path / "tasks")
    with served(directory, "--max-batch", 4) as server:
        for settings in ({"batch_size": 6}, {"num_concurrent": 4}):
            theirs = hellaswag(api_model(server, directory, **settings), tmp_path / "tasks")
            for a, b in zip(
                ours["samples"]["hellaswag"], theirs["samples"]["hellaswag"], strict=True
            ):
                assert a["arguments"] == b["arguments"]
                one, other = (np.array(s["filtered_resps"], float) for s in (a, b))
                np.testing.assert_allclose(one, other, atol=1e-4)
        figures = measure_hellaswag(Setting(run, scorer, str(file)))
        assert figures["items"] == ITEMS
        for name in ("acc", "acc_norm"):
            assert theirs["results"]["hellaswag"][f"{name},none"] == pytest.approx(figures[name])
        wishes = {"until": ["e", "\n"], "max_gen_toks": 12, "do_sample": False}
        requests = [SimpleNamespace(args=(text, wishes)) for text in ("Once upon", "A", "the ")]
        answers = [
            model.generate_until(requests, disable_tqdm=True)
            for model in (harness_model(run, scorer), api_model(server, directory, batch_size=3))
        ]
        assert answers[0] == answers[1]
