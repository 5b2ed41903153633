"""The rules of the house: imports go left, importing does nothing, everything has a docstring."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT

# A module imports from its own room and from rooms to the left, nothing else.
ORDER = [
    *["base", "config", "tokenizers", "data", "model", "cluster", "preparation", "runs"],
    *["generation", "evaluation", "conversion", "serving", "training", "planning", "cli", "doors"],
]
# What `--help`, `prepare` and `plan` need; none of it imports jax, so that they are instant.
WITHOUT_JAX = [
    *["base.errors", "base.files", "base.terminal", "config", "tokenizers", "cli"],
    *[
        "model.places",
        "model.size",
        "model.trainable",
        "cluster.devices",
        "preparation",
        "planning",
    ],
]
BUT = [f"planning.{name}" for name in ("compiled", "absent", "elsewhere", "compiled_report")]
LONGEST_FILE, LONGEST_DOOR = 300, 120
LARGEST_ROOM = 1 / 4  # of the package's lines
NO_NAMES = {"utils", "util", "helpers", "misc", "common"}

FILES = {
    ".".join(path.relative_to(ROOT / "gptjax").with_suffix("").parts).removesuffix(
        ".__init__"
    ): path
    for path in sorted((ROOT / "gptjax").rglob("*.py"))
}
SYNTAX = {name: ast.parse(path.read_text()) for name, path in FILES.items()}
FACE = "__init__"
MODULES = [name for name in FILES if name != FACE]
DOORS = [name for name in MODULES if "." not in name and name not in ORDER]


def room(name: str) -> str:
    """The room of a module; a module that lies loose at the top is a door."""
    first = name.split(".")[0]
    return first if first in ORDER else "doors"


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


@cache
def inner_imports(name: str) -> frozenset[str]:
    """The modules of the package itself that a file imports."""
    inside = (m for m in imports(name) if m.split(".")[0] == "gptjax")
    return frozenset(m.removeprefix("gptjax").removeprefix(".") or FACE for m in inside)


def test_every_room_has_its_place_in_the_order():
    assert {room(name) for name in MODULES} <= set(ORDER)
    assert {path.name for path in (ROOT / "gptjax").iterdir() if path.is_dir()} - {
        "__pycache__"
    } <= set(ORDER)


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_to_the_left_or_stay_in_the_room(name):
    mine = ORDER.index(room(name))
    others = [other for other in inner_imports(name) if room(other) != room(name)]
    assert [other for other in others if ORDER.index(room(other)) >= mine] == []


def test_no_modules_import_each_other_in_a_circle():
    finished: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path, name])
        if name not in finished:
            for other in inner_imports(name) - {name}:
                visit(other, (*path, name))
            finished.add(name)

    for name in MODULES:
        visit(name, ())


def test_packages_import_nothing_but_the_public_face_of_a_config():
    packages = [name for name in MODULES if FILES[name].name == "__init__.py"]
    assert {n: set(inner_imports(n)) for n in packages if imports(n)} == {
        "config": {"config.schema"}
    }


def test_nobody_imports_a_door():
    assert {name: inner_imports(name) & set(DOORS) for name in FILES if name not in DOORS} == {
        name: set() for name in FILES if name not in DOORS
    }


@pytest.mark.parametrize("door", DOORS)
def test_a_door_is_a_thin_main(door):
    runs_itself = [n for n in SYNTAX[door].body if isinstance(n, ast.If)]
    assert [ast.unparse(node.test) for node in runs_itself] == ["__name__ == '__main__'"]
    assert len(FILES[door].read_text().splitlines()) <= LONGEST_DOOR


def test_only_the_model_imports_flax():
    users = {name for name in FILES for module in imports(name) if module.split(".")[0] == "flax"}
    assert {room(name) for name in users} == {"model"}


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
QUICK = [
    name
    for name in MODULES
    if any(name == part or name.startswith(f"{part}.") for part in WITHOUT_JAX) and name not in BUT
]


@pytest.mark.parametrize("name", QUICK)
def test_what_help_and_plan_need_does_without_jax(name):
    assert {module for module in closure(name) if module.split(".")[0] in HEAVY} == set()


def imported_by(statement: str) -> str:
    script = f"import sys; {statement}; print(sorted({HEAVY | LAZY} & set(sys.modules)))"
    return subprocess.run(
        [sys.executable, "-c", script], env={"PYTHONPATH": str(ROOT)},
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip


def test_importing_it_leaves_jax_alone():
    quick = ", ".join(f"gptjax.{name}" for name in QUICK)
    assert imported_by(f"import gptjax, {quick}") == "[]"


@pytest.mark.parametrize("door", DOORS)
def test_importing_a_door_leaves_jax_alone(door):
    assert imported_by(f"import gptjax.{door}") == "[]"


def test_a_program_is_made_without_data_command_line_or_checkpoints():
    script = """
import sys
import gptjax.training.program
print(sorted({"grain", "tyro", "orbax"} & {name.split(".")[0] for name in sys.modules}))
"""
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
try:
    jax.config.update("jax_num_cpu_devices", 3)  # jax refuses once there are devices
    print("untouched")
except RuntimeError as error:
    print(error)
"""
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True, text=True,
        env={"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert result.stdout.splitlines() == ["untouched"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_short_and_well_named(name):
    assert len(FILES[name].read_text().splitlines()) <= LONGEST_FILE
    assert not NO_NAMES & set(name.split("."))


def test_no_room_is_larger_than_a_quarter_of_the_package():
    lines = {name: len(path.read_text().splitlines()) for name, path in FILES.items()}
    total = sum(lines.values())
    of_room = {r: sum(n for name, n in lines.items() if room(name) == r) for r in ORDER}
    assert {r: n for r, n in of_room.items() if n > total * LARGEST_ROOM} == {}


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


def test_a_public_name_means_one_thing():
    """A name of two things in two rooms misleads; those of one protocol, or of a type, do not."""
    places: dict[str, list[str]] = {}
    for name in MODULES:
        for node in SYNTAX[name].body:
            is_definition = isinstance(node, ast.FunctionDef | ast.ClassDef)
            if is_definition and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(name)
    assert {name: where for name, where in places.items() if len(where) > 1} == {}
    assert set(places) & set(DOORS) <= {name for name in DOORS if places.get(name) == [name]}


TEXTS = sorted(
    path
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("launch/**/*")]
    if path.is_file()
)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_text_names_exists(path: Path):
    text = path.read_text()
    configs = set(re.findall(r"gptjax\.\w+[^\n`]* --config[ =]([a-z]\w*)(?![\w./])", text))
    configs |= set(re.findall(r"configs/(\w+)\.py", text))
    verbs = set(re.findall(r"python3? -m gptjax\.(\w+)", text))
    assert configs <= {p.stem for p in (ROOT / "configs").glob("*.py")}
    assert verbs <= set(DOORS)
    paths = re.findall(r"(?<![\w/])(?:gptjax|tests|bench|docs)/[\w/]+\.\w+", text)
    assert [path for path in paths if not (ROOT / path).exists()] == []
