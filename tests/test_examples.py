"""The examples in docstrings are true, and every public function of the model has one."""

import ast
import doctest
import importlib

import jax
import pytest
from conftest import ROOT

MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted((ROOT / "gptjax").glob("*/**/*.py"))
    if ">>>" in path.read_text() or (path.parent.name == "model" and path.stem != "__init__")
]
DEAR = {"decoder", "attention_maps", "rematerialisation"}  # they compile for seconds


def public(name: str) -> dict[str, str]:
    """Docstrings of the public functions and classes of a module."""
    path = ROOT / (name.replace(".", "/") + ".py")
    return {
        node.name: ast.get_docstring(node) or ""
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    }


@pytest.mark.parametrize(
    "name",
    [pytest.param(m, marks=pytest.mark.slow) if m.split(".")[-1] in DEAR else m for m in MODULES],
)
def test_examples_are_true(name):
    module, parser, told = importlib.import_module(name), doctest.DocTestParser(), []
    with jax.numpy_rank_promotion("allow"):
        for what, text in public(name).items():
            example = parser.get_doctest(text, dict(vars(module)), what, name, 0)
            doctest.DocTestRunner(verbose=False).run(example, out=told.append)
    assert "".join(told) == ""


@pytest.mark.parametrize("name", [m for m in MODULES if m.startswith("gptjax.model.")])
def test_every_function_of_the_model_has_an_example(name):
    path = ROOT / (name.replace(".", "/") + ".py")
    functions = {n.name for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef)}
    assert not [w for w, text in public(name).items() if w in functions and ">>>" not in text]
