"""The rules of the house: imports go downward, importing does nothing, everything is explained.

LAYERS lists every module of the package, the lowest first. A module may import what stands in a
layer below its own and, in its own layer, what stands to its left in its own package; so packages
that share a layer, such as data and model, do not know one another. Verbs are the topmost layer. A
new module has to be given a place here.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

LAYERS = [
    ["errors", "files", "hub", "mixing", "tree"],
    ["config"],
    ["places"],
    ["flash", "budget", "ramp"],
    ["validation"],
    [
        "presets",
        *[
            "model.parallel",
            "model.ops",
            "model.products",
            "model.attention",
            "model.layers",
            "model.gpt",
        ],
        *["data.bars", "data.unicode", "data.words", "data.shards", "data.bpe", "data.gpt1"],
        *[
            "data.tokenizers",
            "data.manifest",
            "data.examples",
            "data.foreign",
            "data.windows",
            "data.inspection",
        ],
        *["data.corpus", "data.loader"],
        *["data.documents", "data.sources", "data.readers", "data.partition", "data.scanning"],
        *["data.tokenising", "data.assembly", "data.findings", "data.pool"],
        *["data.repository", "data.streaming", "data.work"],
        *["data.vocabulary", "data.progress", "data.preparation"],
        *["data.downloading", "data.fetching"],
        "evals.perplexity",
        *["training.mesh", "training.metrics", "training.curves", "training.display"],
        *["training.guard", "training.schedules", "training.update_rules", "training.optimizer"],
        *["training.compiler", "training.profile", "training.signals"],
        *["training.agreement", "training.distributed", "training.preflight"],
        "training.watchdog",
        *["training.integrity", "training.ranking"],
        *["planning.gpus", "planning.layout", "planning.memory", "planning.traffic"],
        *["planning.schedule", "planning.fitting", "planning.advice", "planning.report"],
        "planning.collectives",
    ],
    [
        *["cli", "sampling", "training.run_dir", "training.state", "training.loss"],
        *["training.tasks", "training.fitting", "training.dropout"],
    ],
    [
        *["training.checkpoint", "training.step", "training.program", "training.samples"],
        "training.feed",
    ],
    ["training.checkpoint", "training.step", "training.samples", "training.calls"],
    ["training.setup", "training.showing"],
    ["training.start", "planning.compiled"],
    ["training.loop"],
    ["train", "prepare", "generate", "plan"],
]
LAYER = {module: i for i, layer in enumerate(LAYERS) for module in layer}
PLANNING = ("gpus", "layout", "memory", "traffic", "schedule", "fitting", "advice", "report")
WITHOUT_JAX = [
    *["errors", "files", "mixing", "config", "flash", "budget", "ramp", "presets", "cli"],
    "places",
    *["data.preparation", "data.vocabulary", "data.foreign", "data.fetching"],
    *["hub", "planning.collectives"],
    *[f"planning.{name}" for name in PLANNING],
]
LONGEST_FILE = 320
NO_NAMES = {"utils", "util", "helpers", "misc", "common"}

FILES = {
    ".".join(path.relative_to(ROOT / "gptjax").with_suffix("").parts): path
    for path in sorted((ROOT / "gptjax").rglob("*.py"))
}
MODULES = [name for name in FILES if not name.endswith("__init__")]
SYNTAX = {name: ast.parse(path.read_text()) for name, path in FILES.items()}


def imports(name: str) -> set[str]:
    """Full names of the modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(SYNTAX[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            submodules = {m for m in members if m.removeprefix("gptjax.") in FILES}
            found |= submodules or {str(node.module)}
    return found


def inner_imports(name: str) -> set[str]:
    """The modules of the package itself that a file imports."""
    inside = {m for m in imports(name) if m.split(".")[0] == "gptjax"}
    return {m.removeprefix("gptjax").removeprefix(".") or "__init__" for m in inside}


def is_verb(name: str) -> bool:
    return any(
        isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
        for node in SYNTAX[name].body
    )


def may_import(importer: str, imported: str) -> bool:
    if LAYER[imported] != LAYER[importer]:
        return LAYER[imported] < LAYER[importer]
    layer, package = LAYERS[LAYER[importer]], importer.rpartition(".")[0]
    is_left = layer.index(imported) < layer.index(importer)
    return bool(package) and package == imported.rpartition(".")[0] and is_left


def test_every_module_has_one_place():
    places = [module for layer in LAYERS for module in layer]
    assert sorted(places) == sorted(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_downward(name):
    upward = [other for other in inner_imports(name) if not may_import(name, other)]
    assert upward == []


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith("__init__")])
def test_packages_import_nothing(name):
    assert imports(name) == set()


def test_verbs_are_the_top_and_nobody_imports_them():
    verbs = [name for name in MODULES if is_verb(name)]
    assert sorted(verbs) == sorted(LAYERS[-1])
    importers = {name: inner_imports(name) & set(verbs) for name in FILES}
    assert {name: found for name, found in importers.items() if found} == {}


def test_only_the_model_imports_flax():
    users = {name for name in FILES for module in imports(name) if module.split(".")[0] == "flax"}
    assert users
    assert {name for name in users if not name.startswith("model.")} == set()


def closure(name: str) -> set[str]:
    """All modules, of any package, that importing this one brings along by its own source."""
    seen, waiting = set(), [name]
    while waiting:
        module = waiting.pop()
        seen |= imports(module)
        waiting += [m for m in inner_imports(module) if f"gptjax.{m}" not in seen and m in FILES]
        seen |= {f"gptjax.{m}" for m in inner_imports(module)}
    return seen


HEAVY = {"jax", "jaxlib", "flax", "optax", "orbax", "grain"}
LAZY = {"datasets", "huggingface_hub", "pyarrow", "pandas"}  # loaded where they are used, if at all


@pytest.mark.parametrize("name", WITHOUT_JAX)
def test_what_help_needs_does_without_jax(name):
    assert {module for module in closure(name) if module.split(".")[0] in HEAVY} == set()


@pytest.mark.parametrize("name", WITHOUT_JAX + LAYERS[-1])
def test_importing_it_leaves_jax_alone(name):
    script = f"import sys, gptjax.{name}; print(sorted({HEAVY | LAZY} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", script], env={"PYTHONPATH": str(ROOT)},
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert result.stdout == "[]\n"


def test_importing_everything_touches_no_device_network_or_file(tmp_path):
    script = f"""
import importlib, sys

def watch(event, args):
    writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
    if writes or event.startswith(("socket.", "subprocess.", "os.mkdir", "os.rename")):
        print(event, args)

sys.dont_write_bytecode = True
sys.addaudithook(watch)
for name in {MODULES}:
    importlib.import_module("gptjax." + name)
import jax
jax.config.update("jax_num_cpu_devices", 3)  # which jax refuses once it has looked for devices
print("devices", jax.device_count())
"""
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True, text=True,
        env={"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert result.stdout.splitlines() == ["devices 3"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_short_and_well_named(name):
    assert len(FILES[name].read_text().splitlines()) <= LONGEST_FILE
    assert not NO_NAMES & set(name.split("."))


def public_definitions(node: ast.AST, prefix: str) -> list[tuple[str, ast.AST]]:
    """The module itself and its public functions and classes, with their public methods."""
    found = [(prefix, node)]
    for child in ast.iter_child_nodes(node):
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        is_public = isinstance(child, kinds) and not child.name.startswith("_")
        if is_public and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found += public_definitions(child, f"{prefix}.{child.name}")
    return found


@pytest.mark.parametrize("name", FILES)
def test_everything_public_is_explained(name):
    definitions = public_definitions(SYNTAX[name], name)
    assert [what for what, node in definitions if not ast.get_docstring(node)] == []


TEXTS = sorted(
    path
    for path in [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("launch/**/*")]
    if path.is_file()
)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_configs_and_verbs_that_a_text_names_exist(path: Path):
    text = path.read_text()
    configs = set(re.findall(r"gptjax\.\w+[^\n`]* --config[ =]([a-z]\w*)(?![\w./])", text))
    configs |= set(re.findall(r"configs/(\w+)\.py", text))
    verbs = set(re.findall(r"python3? -m gptjax\.(\w+)", text))
    assert configs <= {p.stem for p in (ROOT / "configs").glob("*.py")}
    assert verbs <= set(LAYERS[-1])
