"""Several adapters on one model: its arrays exist once, and nobody hears the others."""

import dataclasses
import threading
from functools import cache

import jax
import numpy as np
import openai
import pytest
from live_server import SHAPE, TOKENIZER, held_engine, live_server, random_params, wait_until

from gptjax.base.errors import ConfigError, UserError
from gptjax.base.tree import as_tree, named_leaves
from gptjax.config import ModelConfig
from gptjax.config.examples import InstructConfig
from gptjax.conversion.opening import load_run
from gptjax.conversion.pinned import pin
from gptjax.conversion.run_directory import config_for, write_step_0
from gptjax.generation.engine import Engine
from gptjax.model.gpt import GPT, parameter_shapes
from gptjax.runs.naming import ADAPTERS, PARAMS, CheckpointName
from gptjax.serving.models import open_models
from gptjax.serving.options import ServeCommand, check_serve_flags

ADAPTED = dataclasses.replace(SHAPE, lora_rank=2, lora_alpha=3.0, lora_targets=("c_attn", "c_fc"))


def random_adapters(seed: int, cfg: ModelConfig = ADAPTED):
    """Adapters of standard normal numbers, whose effect is large."""
    draw = np.random.default_rng(seed).standard_normal
    own = {n: x for n, x in named_leaves(parameter_shapes(cfg)).items() if "/lora_" in n}
    return as_tree({name: np.float32(draw(x.shape)) for name, x in own.items()})


@cache
def adapted_engine(seed: int) -> Engine:
    return held_engine().adapted(ADAPTED, random_adapters(seed))


def whole_logprobs(adapters, ids: list[int]) -> np.ndarray:
    """Log-probabilities of all tokens but the first, by one pass of the whole model."""
    params = as_tree(named_leaves(random_params()) | named_leaves(adapters))
    logits = np.asarray(GPT(ADAPTED).apply({"params": params}, np.array([ids])), np.float64)
    logits = logits[0, :-1, : TOKENIZER.n_vocab]
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return logprobs[np.arange(len(ids) - 1), ids[1:]]


@pytest.mark.slow
def test_an_adapted_engine_computes_the_model_with_adapters():
    ids = TOKENIZER.encode("Once upon a time").tolist()
    found = [[t.logprob for t in adapted_engine(seed).score(ids)] for seed in (0, 1)]
    for seed, logprobs in enumerate(found):
        expected = whole_logprobs(random_adapters(seed), ids)
        np.testing.assert_allclose(logprobs, expected, atol=1e-5)
    assert np.abs(np.subtract(*found)).max() > 0.1
    base = [t.logprob for t in held_engine().score(ids)]
    assert np.abs(np.subtract(base, found[0])).max() > 0.1


def test_another_adapter_costs_its_own_leaves_and_its_slots():
    engine, adapters = held_engine(), random_adapters(7)
    adapted_engine(0)  # whose programs it shares

    def cost(make) -> tuple[int, object]:
        before = {id(x) for x in jax.live_arrays()}
        made = make()
        return sum(x.nbytes for x in jax.live_arrays() if id(x) not in before), made

    slots, _with_slots = cost(lambda: engine.with_slots(engine.capacity))
    whole, _adapted = cost(lambda: engine.adapted(ADAPTED, adapters))
    assert whole == slots + sum(leaf.nbytes for leaf in jax.tree.leaves(adapters))


@pytest.fixture(scope="module")
def server():
    beside = {"poet": adapted_engine(0), "cook": adapted_engine(1)}
    with live_server(held_engine(), beside=beside) as made:
        yield made


@pytest.mark.slow
def test_requests_choose_by_name_and_get_the_same_text_in_company(server):
    names = ("tiny", "poet", "cook")

    def text(name: str) -> str:
        body = {"model": name, "prompt": "Once ", "max_tokens": 25, "seed": 4}
        answer = server.http.post("/v1/completions", json=body).json()
        assert answer["model"] == name
        return answer["choices"][0]["text"]

    alone = {name: text(name) for name in names}
    assert len(set(alone.values())) == 3
    found = []
    threads = [
        threading.Thread(target=lambda name=name: found.append((name, text(name))))
        for name in names * 3
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted([*alone.items()] * 3)


def test_models_are_listed_and_unknown_ones_refused(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["tiny", "poet", "cook"]
        assert client.models.retrieve("cook").id == "cook"
        with pytest.raises(openai.NotFoundError, match="'tiny', 'poet', 'cook'") as missing:
            client.completions.create(model="poets", prompt="a")
        assert missing.value.code == "model_not_found"


def test_metrics_tell_the_models_apart(server):
    def counted(name: str) -> float:
        return server.metric("gptjax_requests_total", model=name, outcome="answered")

    before = counted("tiny"), counted("poet")
    server.http.post("/v1/completions", json={"model": "poet", "max_tokens": 1})
    wait_until(lambda: counted("poet") > before[1])  # a request is counted once it is answered
    assert (counted("tiny"), counted("poet")) == (before[0], before[1] + 1)
    assert server.metric("gptjax_slots", model="cook") == 2


def written(directory, params, cfg: ModelConfig, item: str, **fields):
    """A run with one checkpoint, of step 0."""
    directory.mkdir()
    config = dataclasses.replace(config_for(cfg, TOKENIZER), **fields)
    write_step_0(directory, config, TOKENIZER, {item: params}, "a test")
    return directory


@pytest.fixture
def runs(tmp_path):
    """A base, and adapters on it that are tuned on instructions."""
    base = written(tmp_path / "base", random_params(), SHAPE, PARAMS)
    instruct = InstructConfig(template="alpaca")
    tuned = {"task": "instruct", "instruct": instruct}
    poet = written(tmp_path / "poet", random_adapters(0), ADAPTED, ADAPTERS, **tuned)
    pin(CheckpointName(base, "0"), poet)
    return base, poet


def opened(base, *adapters: str):
    command = ServeCommand(str(base), adapters=adapters, max_batch=1)
    check_serve_flags(command)
    return open_models(command, "base")


@pytest.mark.slow
def test_runs_of_adapters_are_served_by_name(runs, capsys):
    base, poet = runs
    service, engines = opened(base, f"poet={poet}")
    assert [(m.name, m.base, m.template) for m in service.models] == [
        ("base", None, None),
        ("poet", "base", "alpaca"),
    ]
    ids = TOKENIZER.encode("Once upon a time").tolist()
    found = [token.logprob for token in engines[1].score(ids)]
    np.testing.assert_allclose(found, whole_logprobs(random_adapters(0), ids), atol=1e-5)
    merged = Engine(SHAPE, load_run(poet).params).score(ids)
    np.testing.assert_allclose(found, [token.logprob for token in merged], atol=1e-5)
    assert "with poet" in capsys.readouterr().err


@pytest.mark.slow
def test_adapters_of_another_model_are_refused(runs, tmp_path):
    base, poet = runs
    other = jax.tree.map(lambda x: x + 1, random_params())
    wide = dataclasses.replace(SHAPE, activation="gelu_erf")
    long = dataclasses.replace(SHAPE, n_ctx=2 * SHAPE.n_ctx)
    longer = {
        **random_params(),
        "wpe": jax.tree.map(lambda x: x.repeat(2, 0), random_params()["wpe"]),
    }
    for directory, params, cfg, words in (
        ("other", other, SHAPE, "the values of .* are not the same"),
        ("long", longer, long, f"n_ctx is {SHAPE.n_ctx}, not .* again without --model.n-ctx"),
        ("wide", random_params(), wide, "its model.activation is gelu_tanh, not gelu_erf"),
    ):
        run = written(tmp_path / directory, params, cfg, PARAMS)
        with pytest.raises(UserError, match=f"poet was trained on another model .*{words}"):
            opened(run, f"poet={poet}")
    with pytest.raises(UserError, match="'base', which is that of --run"):
        opened(base, f"base={poet}")


def test_names_of_adapters_are_checked_together():
    with pytest.raises(ConfigError) as caught:
        check_serve_flags(ServeCommand("run", adapters=("runs/poet", "a=x", "a=y", "=z")))
    assert [problem.split(",")[0] for problem in caught.value.problems] == [
        "--adapters must be NAME=RUN",
        "--adapters must be NAME=RUN",
        "--adapters has the name 'a' twice: each needs a name of its own",
    ]
