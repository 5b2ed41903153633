"""Ten steps of config `tiny` have the losses of an independent loop in torch."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import ROOT, made_up_text, run_verb

from gptjax.base.tree import named_leaves
from gptjax.config.presets import load_config
from gptjax.model.gpt import init_params

GOLDEN = ROOT / "tests" / "golden"
STEPS, WARM_UP, VOCABULARY = 10, 3, 257


def prepared_text(directory: Path) -> Path:
    """Made-up text as bytes, the same on every machine."""
    (directory / "words.txt").write_text(made_up_text())
    options = ["--input", "words.txt", "--tokenizer", "bytes", "--out", "data"]
    result = run_verb("prepare", *options, cwd=directory)
    assert result.returncode == 0, result.stderr
    return directory / "data"


def initial_weights() -> dict[str, np.ndarray]:
    """What a run of `tiny` draws."""
    config = load_config("tiny")
    model = dataclasses.replace(config.model, n_vocab=VOCABULARY)
    params = init_params(model, jax.random.key(config.train.seed))
    return {name: np.asarray(leaf) for name, leaf in named_leaves(params).items()}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return prepared_text(tmp_path_factory.mktemp("golden"))


@pytest.mark.slow
def test_ten_losses_are_those_of_a_loop_in_torch(data, tmp_path):
    result = run_verb(
        "train", "--config", "tiny", "--run-dir", "run", "--data.path", data,
        "--train.max-steps", STEPS, "--optim.warmup-steps", WARM_UP, "--train.eval-every-steps", 0,
        cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(row)["train_loss"] for row in rows]
    expected = json.loads((GOLDEN / "tiny_losses.json").read_text())
    assert len(expected) == STEPS
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_torch_has_the_committed_losses_again(data):
    pytest.importorskip("torch")
    path = GOLDEN / "make_tiny_losses.py"
    spec = importlib.util.spec_from_file_location("make_tiny_losses", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    expected = json.loads((GOLDEN / "tiny_losses.json").read_text())
    np.testing.assert_allclose(script.losses(data, initial_weights()), expected, rtol=0, atol=1e-7)
