"""What `import gptjax` offers: lazily, typed, and under no name that is a door's."""

import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, run_verb

import gptjax
from gptjax.base.errors import ConfigError, UserError
from gptjax.config import Config


def test_it_offers_every_name_it_says_and_they_are_all_explained():
    for name in gptjax.__all__:
        assert getattr(gptjax, name).__doc__
    assert set(gptjax.__all__) <= set(dir(gptjax))


def test_no_public_name_is_a_door():
    doors = {path.stem for path in (ROOT / "gptjax").glob("*.py")}
    assert doors & set(gptjax.__all__) == set()


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="load_runs"):
        gptjax.load_runs  # noqa: B018 pyright: ignore[reportAttributeAccessIssue]


def test_the_package_is_typed():
    assert (ROOT / "gptjax" / "py.typed").exists()


def test_configs_come_without_jax():
    script = (
        "import sys, gptjax; c = gptjax.load_config('tiny'); "
        "assert isinstance(c, gptjax.Config) and c.model == gptjax.ModelConfig(**vars(c.model)); "
        "print('jax' in sys.modules)"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], env={"PYTHONPATH": str(ROOT)},
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert found.stdout == "False\n"


def test_five_lines_of_a_notebook(trained_run):
    run = gptjax.load_run(trained_run)
    ids = run.tokenizer.encode("ta be")[None].astype(np.int32)
    logits_BTV = gptjax.GPT(run.config.model).apply({"params": run.params}, ids)
    assert isinstance(run.config, Config)
    assert logits_BTV.shape[:2] == ids.shape
    assert run.step == 20


def test_it_generates_what_the_verb_prints(trained_run):
    run = gptjax.load_run(f"{trained_run}@latest")
    text = run.generate("ta be", max_new_tokens=8, temperature=0.7, top_k=20, seed=3)
    flags = ["--max-new-tokens", 8, "--temperature", 0.7, "--top-k", 20, "--seed", 3]
    printed = run_verb(
        "generate", "--run", trained_run, "--prompt", "ta be", *flags, cwd=trained_run
    )
    assert printed.stdout == text + "\n"
    assert text.startswith("ta be")


def test_what_cannot_be_is_said(trained_run, tmp_path):
    with pytest.raises(UserError, match="no model"):
        gptjax.load_run(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no checkpoint"):
        gptjax.load_run(f"{trained_run}@77")
    with pytest.raises(ConfigError, match="temperature"):
        gptjax.load_run(trained_run).generate(temperature=-1.0)
    for seed in (-1, 2**32, 1.5):
        with pytest.raises(ConfigError, match="seed"):
            gptjax.load_run(trained_run).generate(seed=seed, max_new_tokens=1)  # pyright: ignore[reportArgumentType]
