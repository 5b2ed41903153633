"""The examples in docstrings are true, and every public function of the model has one."""

import ast
import doctest
import importlib

import jax
import pytest
from conftest import ROOT

ROOMS = ["model", "tokenizers", "generation", "evaluation", "data"]
MODULES = [
    f"gptjax.{room}.{path.stem}"
    for room in ROOMS
    for path in sorted((ROOT / "gptjax" / room).glob("*.py"))
    if path.stem != "__init__"
]


def public(name: str) -> dict[str, str]:
    """Docstrings of the public functions and classes of a module."""
    path = ROOT / (name.replace(".", "/") + ".py")
    return {
        node.name: ast.get_docstring(node) or ""
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    }


@pytest.mark.parametrize("name", MODULES)
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
    without = ["cudnn_problem"] if name.endswith("attention") else []  # it depends on the machine
    functions = {n.name for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef)}
    assert [
        w for w, text in public(name).items() if w in functions and ">>>" not in text
    ] == without
