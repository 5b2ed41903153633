"""Courses of whole runs: one that diverges keeps what is good, one that goes on keeps its rate."""

import dataclasses
import json
from pathlib import Path

import pytest
from small_runs import tiny_on

from gptjax.base.errors import UserError
from gptjax.config import Config
from gptjax.runs.directory import RunDir
from gptjax.training import fit

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_compilation_for_all")]
SIX = {
    "train.max_steps": 6, "train.save_every_steps": 1, "train.eval_every_steps": 0,
    "optim.warmup_steps": 0, "model.n_layer": 1, "model.unroll": 1,
}  # fmt: skip


def with_optim(config: Config, max_steps: int, **fields) -> Config:
    return dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, max_steps=max_steps),
        optim=dataclasses.replace(config.optim, **fields),
    )


def rates(run: Path) -> list[float]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["learning_rate"] for line in lines]


def kept(run: Path) -> list[int]:
    return sorted(int(p.name) for p in (run / "checkpoints").iterdir())


def test_a_run_that_diverges_keeps_a_good_checkpoint_and_goes_on_from_it(
    prepared, tmp_path, capsys
):
    run, config = tmp_path / "run", tiny_on(prepared, SIX)
    assert fit.fit(config, run) == 0
    assert kept(run) == [5, 6]
    diverging = with_optim(config, 60, peak_lr=1e37, final_lr=1e37)
    with pytest.raises(UserError, match=r"20 steps in a row .* checkpoint of step 6 .* verified"):
        fit.fit(diverging, run)
    assert kept(run) == [6]  # step 7 was accepted, and spoilt the parameters
    assert [p.name for p in (run / "damaged").iterdir()] == ["7"]
    assert "checkpoint is postponed" in capsys.readouterr().out
    assert fit.fit(with_optim(config, 8), run) == 0
    assert kept(run) == [7, 8]


def test_the_flags_that_a_complete_run_names_go_on_without_a_jump(prepared, tmp_path, capsys):
    run, config = tmp_path / "it's a run", tiny_on(prepared, SIX)
    assert fit.fit(config, run) == 0
    said = capsys.readouterr().out
    assert """--run '""" + str(run).replace("'", "'\"'\"'") + "'" in said
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != "log.txt"}
    assert fit.fit(with_optim(config, 6, peak_lr=1.0), run) == 0
    after = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != "log.txt"}
    assert after == before  # nothing was trained with that rate
    assert "--optim.decay-steps 6 " in capsys.readouterr().out

    assert fit.fit(with_optim(config, 8, decay_steps=6), run) == 0
    final = config.optim.final_lr
    assert rates(run)[6:] == pytest.approx([final, final])
    again = with_optim(config, 12, rewarm_steps=(8,), warmup_steps=1)
    assert fit.fit(again, run) == 0
    assert rates(run)[8] == pytest.approx((final + config.optim.peak_lr) / 2)
    assert rates(run)[9] == pytest.approx(config.optim.peak_lr)
    assert max(rates(run)[9:]) == rates(run)[9]
    assert RunDir(run).read_config().optim.rewarm_steps == (8,)
