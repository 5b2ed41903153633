"""docs/attention.md: its lines run, its steps are torch's, its numbers are the book's."""

import ast
import doctest
import importlib
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT

from gptjax import cli
from gptjax.config import ModelConfig
from gptjax.model import ops
from gptjax.model.layers import CausalSelfAttention
from gptjax.model.size import parameter_count
from gptjax.plan import PlanCommand

PAGE = (ROOT / "docs/attention.md").read_text()
FUNCTIONS = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
SESSIONS = re.findall(r"^```pycon\n(.*?)^```", PAGE, re.M | re.S)
STEPS = ast.parse((ROOT / "docs/attention.py").read_text()).body


@pytest.fixture
def page(monkeypatch):
    """The module of the page's functions, which is in no package."""
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module("docs.attention")


@pytest.fixture
def flow(monkeypatch):
    """The program of the page's picture."""
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module("docs.gradient_flow")


def arrays(seed, *shapes):
    chance = np.random.default_rng(seed)
    return [jnp.asarray(chance.standard_normal(shape), jnp.float32) for shape in shapes]


@pytest.mark.slow
def test_the_sessions_of_the_page_give_what_it_shows(page):
    told: list[str] = []
    parse = doctest.DocTestParser().get_doctest
    examples = parse("\n".join(SESSIONS), {}, "attention.md", None, 0)
    assert len(examples.examples) > 40
    doctest.DocTestRunner(verbose=False).run(examples, out=told.append)
    assert "".join(told) == ""


def test_the_functions_that_the_page_shows_are_those_of_the_module():
    shown = [ast.parse(block).body[0] for block in FUNCTIONS]
    assert len(shown) == 5
    ours = {node.name: node for node in STEPS if isinstance(node, ast.FunctionDef)}
    for function in shown:
        assert isinstance(function, ast.FunctionDef)
        original = ours[function.name]
        assert ast.get_docstring(original)
        names = [argument.arg for argument in original.args.args]
        assert [argument.arg for argument in function.args.args] == names
        assert list(map(ast.dump, function.body)) == list(map(ast.dump, original.body[1:]))


def test_no_step_before_the_mask_knows_the_order_of_tokens(page):
    x, q, k, v = arrays(1, (7, 5), (5, 3), (5, 3), (5, 3))
    order = np.random.default_rng(0).permutation(7)
    for step, weights in ((page.similarity_attention, []), (page.self_attention, [q, k, v])):
        np.testing.assert_allclose(step(x[order], *weights), step(x, *weights)[order], rtol=1e-5)
    causal = page.causal_attention
    assert not np.allclose(causal(x[order], q, k, v), causal(x, q, k, v)[order], atol=1e-2)


def test_the_steps_are_torchs(page):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    x, q, k, v, out = arrays(2, (7, 6), (2, 6, 3), (2, 6, 3), (2, 6, 3), (6, 6))
    tx, tq, tk, tv, tout = (torch.from_numpy(np.array(a)) for a in (x, q, k, v, out))
    attend = functional.scaled_dot_product_attention
    similar = attend(tx[None], tx[None], tx[None], scale=1.0)[0]
    whole = attend(tx @ tq, tx @ tk, tx @ tv)
    past = attend(tx @ tq, tx @ tk, tx @ tv, is_causal=True)
    mixed = past.transpose(0, 1).reshape(7, 6) @ tout
    pairs = [
        (page.similarity_attention(x), similar),
        (page.self_attention(x, q[1], k[1], v[1]), whole[1]),
        (page.causal_attention(x, q[1], k[1], v[1]), past[1]),
        (page.multi_head_attention(x, q, k, v, out), mixed),
    ]
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5, atol=1e-5)


def test_the_last_step_is_the_layer_that_we_train_with_biases_too(page):
    cfg = ModelConfig(n_head=5, n_embd=20, n_ctx=9)
    layer = CausalSelfAttention(cfg)
    (x_BTD,) = arrays(3, (2, 9, 20))
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x_BTD)["params"]
    params = jax.tree.map(lambda leaf: arrays(leaf.size, leaf.shape)[0] / 4, shapes)
    expected = jax.jit(layer.apply)({"params": params}, x_BTD)
    # a bias is the weight of an input that is always 1
    x_BTE = jnp.concatenate([x_BTD, jnp.ones((2, 9, 1))], axis=-1)
    heads = page.split_heads(jnp.vstack([params["c_attn"]["kernel"], params["c_attn"]["bias"]]), 5)
    for x_TE, y_TD in zip(x_BTE, expected, strict=True):
        ours = page.multi_head_attention(x_TE, *heads, params["c_proj"]["kernel"])
        ours += params["c_proj"]["bias"][None]
        np.testing.assert_allclose(ours, y_TD, rtol=1e-4, atol=1e-4)


# Raschka (2024), sections 3.4.2, 3.5.3 and 3.6.2: as printed, from torch's random weights
BOOK_X = [
    *[[0.43, 0.15, 0.89], [0.55, 0.87, 0.66], [0.57, 0.85, 0.64]],
    *[[0.22, 0.58, 0.33], [0.77, 0.25, 0.10], [0.05, 0.80, 0.55]],
]
BOOK_SELF = [
    *[[0.2996, 0.8053], [0.3061, 0.8210], [0.3058, 0.8203]],
    *[[0.2948, 0.7939], [0.2927, 0.7891], [0.2990, 0.8040]],
]
BOOK_CAUSAL = [
    *[[-0.4519, 0.2216], [-0.5874, 0.0058], [-0.6300, -0.0632]],
    *[[-0.5675, -0.0843], [-0.5526, -0.0981], [-0.5299, -0.1081]],
]


def test_the_results_of_the_book_come_out(page):
    torch = pytest.importorskip("torch")
    x_TD = jnp.array(BOOK_X)
    torch.manual_seed(123)
    weights = [torch.rand(3, 2).numpy() for _ in "qkv"]
    np.testing.assert_allclose(page.self_attention(x_TD, *weights), BOOK_SELF, atol=6e-5)
    torch.manual_seed(123)
    layers = [torch.nn.Linear(3, 2, bias=False) for _ in "qkv"]
    weights = [layer.weight.detach().numpy().T for layer in layers]
    np.testing.assert_allclose(page.causal_attention(x_TD, *weights), BOOK_CAUSAL, atol=6e-5)


def test_one_axis_is_layer_norm_and_the_other_batch_norm(page):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    (x,) = arrays(4, (6, 5))
    tx = torch.from_numpy(np.array(x))
    layer_norm = functional.layer_norm(tx, (5,))
    batch_norm = functional.batch_norm(tx, None, None, training=True)
    np.testing.assert_allclose(page.normalise(x, -1), layer_norm, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(page.normalise(x, 0), batch_norm, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(page.normalise(x, -1), ops.layer_norm(x), rtol=1e-4, atol=1e-5)


def table(first_cell):
    """The cells of the page's table whose first row begins with this cell; no rule, no heading."""
    lines = PAGE[PAGE.index(f"\n| {first_cell} |") + 1 :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_of_means_is_right():
    x = np.array([[0.7, 1, -1.02], [71, 34, -55]])
    x1, x2, means, stds = table("x1")
    for cells, row in ((x1, x[0]), (x2, x[1])):
        shown = [float(cell) for cell in cells[1:]]
        np.testing.assert_allclose(shown, [*row, row.mean(), row.std()], atol=6e-4)
    np.testing.assert_allclose([float(cell) for cell in means[1:4]], x.mean(0), atol=1e-9)
    np.testing.assert_allclose([float(cell) for cell in stds[1:4]], x.std(0), atol=1e-9)


def test_the_two_gelus_differ_as_the_page_says():
    x = np.linspace(-8, 8, 4001)
    exact = x * (1 + np.vectorize(math.erf)(x / 2**0.5)) / 2
    tanh, slopes_of = jax.vjp(ops.gelu, jnp.asarray(x))
    assert 0.0004 < np.abs(tanh - exact).max() < 0.0005
    (slopes,) = slopes_of(np.ones(4001, np.float32))
    assert -0.76 < x[slopes > 0].min() < -0.74


@pytest.mark.parametrize("shortcut", [False, True])
def test_the_gradients_of_the_book_come_out(flow, shortcut):
    torch = pytest.importorskip("torch")
    torch.manual_seed(123)
    layers = [torch.nn.Linear(3, width) for width in (3, 3, 3, 3, 1)]
    ours = [(layer.weight.detach().numpy().T, layer.bias.detach().numpy()) for layer in layers]
    without, with_shortcuts = table("without shortcuts")
    shown = [float(cell) for cell in (with_shortcuts if shortcut else without)[1:]]
    gradients = flow.mean_gradients(ours, jnp.array([1.0, 0.0, -1.0]), shortcut)
    np.testing.assert_allclose(gradients, shown, atol=6e-6)


@pytest.mark.slow
def test_the_command_draws_that_shortcuts_keep_the_gradient(flow, tmp_path, capsys):
    flow.main(["--out", str(tmp_path / "flow.png"), "--depth", "6"])
    assert (tmp_path / "flow.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out.splitlines()
    (first, last), (first_without, last_without) = (
        map(float, re.findall(r"\d\S*e\S\d+", line)) for line in printed
    )
    assert first > 0.5 * last
    assert first_without < 0.1 * last_without


@pytest.mark.parametrize(("name", "depth"), [("flow.png", 1), ("flow.text", 3), ("no/flow.png", 3)])
def test_what_cannot_be_drawn_is_refused_before_anything_is_written(flow, tmp_path, name, depth):
    with pytest.raises(SystemExit) as left:
        flow.main(["--out", str(tmp_path / name), "--depth", str(depth)])
    assert left.value.code == 2
    assert list(tmp_path.iterdir()) == []


VARIANTS = [(flags.strip("`"), int(n.replace(",", ""))) for _, flags, n in table("GPT-2 small")]


@pytest.mark.parametrize(("flags", "parameters"), VARIANTS)
def test_every_variant_has_its_number_of_parameters(flags, parameters):
    argv = [] if flags == "none" else flags.split()
    if "--config" not in argv:
        argv = ["--config", "gpt2_124m", *argv]
    config = cli.parse_config(PlanCommand, argv, "plan").run
    assert parameter_count(config.model) == parameters


def test_the_numbers_of_parameters_are_the_published_ones():
    """GPT-2's and GPT-1's released weights; Raschka (2024), section 4.6 and its exercise."""
    assert {124_439_808, 124_412_160, 163_009_536, 116_534_784} <= {n for _, n in VARIANTS}
