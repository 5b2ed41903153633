"""What `import gptjax` offers: lazily, typed, and under no name that is a door's."""

import subprocess
import sys
from itertools import zip_longest
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, run_verb

import gptjax
from gptjax.base.errors import ConfigError, UserError
from gptjax.config import Config
from gptjax.conversion.exporting import export_huggingface


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


@pytest.fixture
def run_path(trained_run: Path) -> Path:
    return trained_run


def test_five_lines_of_a_notebook(run_path):
    run = gptjax.load_run(run_path)
    ids = run.tokenizer.encode("ta be")[None].astype(np.int32)
    logits_BTV = gptjax.GPT(run.config.model).apply({"params": run.params}, ids)
    assert isinstance(run.config, Config)
    assert logits_BTV.shape[:2] == ids.shape
    assert run.step == 20


@pytest.mark.slow
def test_it_generates_what_the_verb_prints(run_path):
    run = gptjax.load_run(f"{run_path}@latest")
    text = run.generate("ta be", max_new_tokens=8, temperature=0.7, top_k=20, seed=3)
    flags = ["--max-new-tokens", 8, "--temperature", 0.7, "--top-k", 20, "--seed", 3]
    printed = run_verb("generate", "--run", run_path, "--prompt", "ta be", *flags, cwd=run_path)
    assert printed.stdout == text.replace("\r", "\n") + "\n"  # as text pipes are read
    assert text.startswith("ta be")


def test_texts_of_one_run_can_be_drawn_in_turns(run_path):
    """Each stream has a cache of its own; the parameters are placed once for all."""
    run = gptjax.load_run(run_path)
    alone = [run.generate(prompt, max_new_tokens=12, seed=2) for prompt in ("ta be", "bo")]
    streams = [run.stream(prompt, max_new_tokens=12, seed=2) for prompt in ("ta be", "bo")]
    texts = ["ta be", "bo"]
    for pieces in zip_longest(*streams, fillvalue=""):
        texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
    assert texts == alone
    stop = alone[0][8:10]
    assert run.generate("ta be", max_new_tokens=12, seed=2, stop=[stop]) == (
        "ta be" + alone[0][5:].partition(stop)[0]
    )


@pytest.mark.slow
def test_parameters_have_the_type_asked_for(run_path, tmp_path):
    export_huggingface(str(run_path), tmp_path / "hf")
    for path in (run_path, tmp_path / "hf"):
        whole, half = gptjax.load_run(path), gptjax.load_run(path, dtype="bfloat16")
        rounded = jax.tree.map(lambda x: x.astype("bfloat16"), whole.params)
        assert jax.tree.all(jax.tree.map(jnp.array_equal, rounded, half.params))
        assert {str(x.dtype) for x in jax.tree.leaves(half.params)} == {"bfloat16"}
        assert half.generate("ta be", max_new_tokens=4, seed=1).startswith("ta be")


def test_what_cannot_be_is_said(run_path, tmp_path):
    with pytest.raises(UserError, match="no model"):
        gptjax.load_run(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no checkpoint"):
        gptjax.load_run(f"{run_path}@77")
    with pytest.raises(ConfigError, match="temperature"):
        gptjax.load_run(run_path).generate(temperature=-1.0)
    with pytest.raises(ConfigError, match="top_p"):
        gptjax.load_run(run_path).stream(top_p=0.0)
    for seed in (-1, 2**32, 1.5):
        with pytest.raises(ConfigError, match="seed"):
            gptjax.load_run(run_path).generate(seed=seed, max_new_tokens=1)  # pyright: ignore[reportArgumentType]
