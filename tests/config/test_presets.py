"""Every shipped config loads and is what it says; an error in a user's own config is named."""

import ast
import dataclasses
import importlib
import re
import shlex
from pathlib import Path

import jax
import pytest
from conftest import ROOT

from gptjax.base.errors import ConfigError
from gptjax.base.tree import count_elements
from gptjax.cli import ConfigCommand, parse, parse_config
from gptjax.cluster.mesh import batch_layout, make_mesh
from gptjax.config import Config, OptimConfig
from gptjax.config.names import parse_change
from gptjax.config.presets import find_preset, load_config, preset_names, presets_dir
from gptjax.config.validation import validate
from gptjax.model.gpt import parameter_shapes
from gptjax.model.places import leaves
from gptjax.model.size import parameter_count
from gptjax.plan import plan
from gptjax.tokenizers.gpt1 import SPECIAL_TOKENS
from gptjax.training.autotune import memory_needed
from gptjax.training.program import assemble
from gptjax.training.schedules import learning_rate_schedule

CONFIGS = sorted((ROOT / "configs").glob("*.py"))
COMMAND = re.compile(r"^ +python -m gptjax\.(\w+)((?: (?:\\\n|.)*)?)$", re.MULTILINE)


def docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text()), clean=False) or ""


def commands() -> list[tuple[str, str, str]]:
    """(config, verb, arguments) of every command in every docstring."""
    return [
        (path.stem, verb, words.replace("\\\n", ""))
        for path in CONFIGS
        for verb, words in COMMAND.findall(docstring(path))
    ]


def vocabulary(config: Config) -> int:
    kind, _, size = (config.data.tokenizer or "bytes").partition(":")
    return int(size) if kind == "bpe" else {"gpt1": 40478, "gpt2": 50257, "bytes": 257}[kind]


def sized(name: str) -> Config:
    """A shipped config with its vocabulary filled in."""
    config = load_config(name)
    assert config.model.n_vocab in (None, vocabulary(config))
    model = dataclasses.replace(config.model, n_vocab=vocabulary(config))
    return dataclasses.replace(config, model=model)


def problems_of(name: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(name)
    assert caught.value.exit_code == 2
    assert len(caught.value.problems) == 1
    return caught.value.problems[0]


def test_the_names_are_the_files_of_configs():
    assert presets_dir() == ROOT / "configs"
    assert preset_names() == [path.stem for path in CONFIGS]
    assert {"gpt2_124m", "gpt2_124m_book", "quickstart", "shakespeare", "tiny"} <= set(
        preset_names()
    )
    assert [find_preset(path.stem) for path in CONFIGS] == CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_config_loads_by_name_and_by_path(path):
    config = load_config(path.stem)
    validate(config)
    assert load_config(str(path)) == config


@pytest.mark.parametrize("name", preset_names())
def test_a_shipped_config_gives_a_model(name):
    model = sized(name).model
    shapes = parameter_shapes(model)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(shapes))
    assert shapes["wte"]["embedding"].shape == (model.padded_vocab, model.n_embd)
    assert shapes["wpe"]["embedding"].shape == (model.n_ctx, model.n_embd)
    assert shapes["h"]["attn"]["c_attn"]["kernel"].shape == (
        model.n_layer,
        model.n_embd,
        3 * model.n_embd,
    )


@pytest.mark.parametrize("name", preset_names())
def test_a_docstring_gives_the_command_that_trains_it(name):
    trained = [shlex.split(words) for config, verb, words in commands() if (config, verb) == (
        name, "train")]  # fmt: skip
    assert ["--config", name] in trained


@pytest.mark.usefixtures("gpt2_runs")
@pytest.mark.parametrize(("name", "verb", "words"), commands())
def test_a_command_of_a_docstring_is_understood_by_its_verb(name, verb, words):
    module = importlib.import_module(f"gptjax.{verb}")
    command = getattr(module, f"{verb.title()}Command")
    argv = shlex.split(words)
    if issubclass(command, ConfigCommand):
        assert parse_config(command, argv, verb).config == name
    else:
        parsed = parse(command, argv, verb)
        assert getattr(parsed, "config", name) == name


@pytest.mark.parametrize(
    ("name", "tied", "parameters"),
    [
        ("gpt1_117m", True, 116_534_784),
        ("gpt2_124m", True, 124_439_808),
        ("gpt2_124m_book", True, 124_412_160),
        ("gpt2_124m_book", False, 163_009_536),
        ("gpt2_124m_muon", False, 163_037_184),
    ],
)
def test_parameter_counts_are_the_published_ones(name, tied, parameters):
    model = dataclasses.replace(sized(name).model, tied_head=tied)
    assert parameter_count(model) == parameters
    assert f"{parameters:,}" in docstring(ROOT / "configs" / f"{name}.py")


def test_gpt2_is_trained_as_published():
    config = load_config("gpt2_124m")
    assert config.train.batch_tokens == 2**19
    assert config.optim == OptimConfig(
        peak_lr=6e-4, final_lr=6e-5, warmup_steps=715, decay_steps=None, weight_decay=0.1,
        beta1=0.9, beta2=0.95, eps=1e-8, clip_norm=1.0,
    )  # fmt: skip
    model = config.model
    assert (model.n_layer, model.n_head, model.n_embd, model.n_ctx) == (12, 12, 768, 1024)
    assert (model.embd_pdrop, model.attn_pdrop, model.resid_pdrop) == (0.0, 0.0, 0.0)
    assert (model.norm, model.final_norm, model.scale_residual_init) == ("pre", True, True)
    assert (model.qkv_bias, model.bias, model.tied_head) == (True, True, True)
    assert model.activation == "gelu_tanh"
    assert config.data.tokenizer == "gpt2"
    assert config.train.max_steps * config.train.batch_tokens == pytest.approx(10e9, rel=1e-4)


def test_gpt1_is_trained_as_published():
    config = load_config("gpt1_117m")
    assert config.optim == OptimConfig(
        peak_lr=2.5e-4, final_lr=0.0, warmup_steps=2000, decay_steps=None, weight_decay=0.01,
        beta1=0.9, beta2=0.999, eps=1e-8, clip_norm=1.0,
    )  # fmt: skip
    model = config.model
    assert (model.n_layer, model.n_head, model.n_embd, model.n_ctx) == (12, 12, 768, 512)
    assert (model.embd_pdrop, model.attn_pdrop, model.resid_pdrop) == (0.1, 0.1, 0.1)
    assert (model.norm, model.final_norm, model.scale_residual_init) == ("post", False, False)
    assert (model.qkv_bias, model.bias, model.tied_head) == (True, True, True)
    assert (model.activation, model.n_vocab, model.dtype) == ("gelu_tanh", 40_478, "float32")
    assert (config.optim.name, config.optim.schedule) == ("adamw", "cosine")
    assert config.data.tokenizer == "gpt1"
    assert config.train.batch_tokens == 64 * 512
    assert config.train.ramp_from_tokens is None
    assert (config.batch_rows, config.context) == (64, 512)
    decayed = {leaf.name for leaf in leaves(model) if leaf.is_decayed}
    assert decayed == {
        "wte/embedding", "wpe/embedding", "h/attn/c_attn/kernel", "h/attn/c_proj/kernel",
        "h/mlp/c_fc/kernel", "h/mlp/c_proj/kernel",
    }  # fmt: skip
    assert config.train.max_steps * config.train.batch_tokens == pytest.approx(100e9, rel=1e-4)


def test_gpt1_s_special_tokens_lie_in_the_padding_of_its_vocabulary():
    model = sized("gpt1_117m").model
    assert list(SPECIAL_TOKENS.values()) == [40_478, 40_479, 40_480]
    assert all(vocabulary(load_config("gpt1_117m")) <= i for i in SPECIAL_TOKENS.values())
    assert all(i < model.padded_vocab for i in SPECIAL_TOKENS.values())


def test_the_better_text_comes_in_as_the_learning_rate_begins_to_fall():
    config = load_config("gpt2_124m_anneal")
    (change,) = config.data.mixture_changes
    step, _ = parse_change(change, len(config.data.mixture))
    rate = learning_rate_schedule(config.optim, config.train.max_steps)
    assert float(rate(step)) == pytest.approx(config.optim.peak_lr)
    assert float(rate(step + 1)) < config.optim.peak_lr
    assert float(rate(config.train.max_steps)) == 0


@pytest.mark.parametrize(
    ("name", "like", "sections"),
    [
        ("gpt2_124m_muon", "gpt2_124m", {"model", "data", "optim", "train"}),
        ("gpt2_355m_8gb", "gpt2_355m", {"model", "optim", "train"}),
        ("gpt2_774m_24gb", "gpt2_774m", {"optim"}),
        ("gpt2_1558m_nodes", "gpt2_1558m", {"train", "mesh"}),
    ],
)
def test_a_variant_differs_where_its_docstring_says(name, like, sections):
    before, after = (dataclasses.asdict(load_config(n)) for n in (like, name))
    assert {section for section in after if after[section] != before[section]} == sections
    assert after["train"]["batch_tokens"] == before["train"]["batch_tokens"]


@pytest.mark.usefixtures("newest_gpu_counts")
@pytest.mark.parametrize(
    ("name", "gpu", "counted"),
    [
        ("gpt2_355m_8gb", "t4", r"Memory: (.*) GiB by the planner"),
        ("gpt2_774m_24gb", "rtx4090", r"Memory: (.*) GiB with 8 rows"),
    ],
)
def test_a_config_for_a_small_card_needs_what_its_docstring_says(name, gpu, counted, capsys):
    assert plan(["--config", name, "--gpu", gpu, "--gpus", "1"]) == 0
    (total,) = re.findall(r"total \(.*\) +([\d.]+)", capsys.readouterr().out)
    (promised,) = re.findall(counted, docstring(find_preset(name)))
    assert f"{float(total):.1f}" == promised


def test_the_book_s_model_differs_in_four_fields_only():
    config, book = load_config("gpt2_124m"), load_config("gpt2_124m_book")
    before, after = dataclasses.asdict(config.model), dataclasses.asdict(book.model)
    assert {name: after[name] for name in after if after[name] != before[name]} == {
        "qkv_bias": False, "embd_pdrop": 0.1, "attn_pdrop": 0.1, "resid_pdrop": 0.1,
    }  # fmt: skip
    assert dataclasses.replace(book, model=config.model) == config


def test_the_8_gb_card_learns_the_same_with_dropout():
    """Only what decides memory differs, and the dropout that its docstring tells of."""
    config, card = load_config("gpt2_124m"), load_config("gpt2_124m_8gb")
    before, after = dataclasses.asdict(config.model), dataclasses.asdict(card.model)
    changed = {name: after[name] for name in after if after[name] != before[name]}
    changed.pop("unroll", None)
    assert changed == {
        "embd_pdrop": 0.1, "attn_pdrop": 0.1, "resid_pdrop": 0.1, "dtype": "float32",
        "attention": "blockwise", "remat": "dots",
    }  # fmt: skip
    assert (card.optim, card.data, card.sample) == (config.optim, config.data, config.sample)
    assert (card.train.batch_tokens, card.train.max_steps) == (2**19, config.train.max_steps)


@pytest.mark.slow
def test_the_step_for_the_8_gb_card_fits_with_room_to_spare():
    """Compiled for one device, not run; a CPU's account, which a GPU's resembles."""
    config = sized("gpt2_124m_8gb")
    layout, mesh = batch_layout(config, 1, config.train.micro_batch), make_mesh(1)
    assert (layout.micro_batch, layout.micro_steps) == (2, 256)
    assert layout.context == 1024
    program = assemble(config, mesh)
    state, compiled = program.abstract_state(), program.compile(layout)
    three_float32 = 3 * 4 * count_elements(state.params)  # parameters and Adam's two moments
    needed = memory_needed(compiled)
    assert three_float32 < needed < 5.5 * 2**30
    (promised,) = re.findall(r"Memory: (.*) GiB of the 8", docstring(find_preset("gpt2_124m_8gb")))
    assert needed / 2**30 == pytest.approx(float(promised), rel=0.05)


GOOD = """
from dataclasses import replace
from gptjax.config import Config, ModelConfig
from gptjax.config.presets import load_config

def get_config():
    return replace(load_config("tiny"), model=ModelConfig(n_layer=3, n_ctx=64))
"""


def test_a_user_s_own_file_is_found_by_its_path(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    for path in ("mine.py", "./mine.py", str(tmp_path / "mine.py")):
        assert load_config(path).model.n_layer == 3
    assert load_config("mine.py").train == load_config("tiny").train


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gpt2_142m", ["unknown config 'gpt2_142m'", "did you mean gpt2_124m?", "choose one of ",
                       "quickstart"]),
        ("xyz", ["unknown config 'xyz': choose one of "]),
        ("", ["unknown config ''"]),
        ("mine.py", ["no config file mine.py"]),
        ("some/where", ["no config file some/where"]),
        ("./", ["no config file ./"]),
    ],
)  # fmt: skip
def test_a_config_that_does_not_exist_is_told_with_what_does(name, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    problem = problems_of(name)
    assert [word for word in words if word not in problem] == []
    assert ("did you mean" in problem) == (name == "gpt2_142m")


BAD_FILES = {
    "nothing": ("x = 1", ["get_config"]),
    "wrong type": ("def get_config(): return {}", ["must return", "Config", "not dict"]),
    "no function": ("get_config = 3", ["TypeError", "not callable"]),
    "syntax": ("def get_config(:", ["SyntaxError"]),
    "import": ("import no_such_module_anywhere", ["no_such_module_anywhere"]),
    "field": (
        "from gptjax.config import *\ndef get_config(): return Config(model=ModelConfig(n_layr=3))",
        ["ModelConfig has no field 'n_layr'", "did you mean n_layer?"],
    ),
    "section": (
        "from gptjax.config import *\ndef get_config(): return Config(modle=ModelConfig())",
        ["Config has no field 'modle'", "did you mean model?"],
    ),
    "function of its own": (
        "class Mine:\n    def __init__(self): ...\ndef get_config(): return Mine(n_layr=3)",
        ["TypeError", "unexpected keyword argument 'n_layr'"],
    ),
    "value": (
        "from gptjax.config import *\ndef get_config(): return Config(train=TrainConfig(seed=-1))",
        ["train.seed must be 0 or more, not -1"],
    ),
    "key": ("def get_config(): return {}['lost']", ["KeyError", "'lost'"]),
}


@pytest.mark.parametrize(("source", "words"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_broken_file_is_named_with_what_is_wrong(source, words, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(source)
    problem = problems_of(str(path))
    assert problem.startswith(str(path))
    assert [word for word in words if word not in problem] == []


def test_every_problem_of_a_file_is_listed_with_its_name(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from gptjax.config import *\n"
        "def get_config(): return Config(train=TrainConfig(seed=-1), optim=OptimConfig(eps=0))\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_config(str(path))
    assert sorted(p.split(" must")[0] for p in caught.value.problems) == [
        f"{path}: optim.eps",
        f"{path}: train.seed",
    ]


def test_gpt2_trains_on_as_nanogpt_fine_tunes():
    config = load_config("gpt2_124m_continue")
    assert config.train.init_from == "runs/gpt2"
    assert config.model == load_config("gpt2_124m").model
    schedule = learning_rate_schedule(config.optim, config.train.max_steps)
    assert [float(schedule(s)) for s in range(2, 20)] == [pytest.approx(3e-5)] * 18
    assert config.train.batch_tokens * config.train.max_steps == 655_360
