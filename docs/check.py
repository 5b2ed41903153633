"""Check every command of the documentation: `make docs-check`, or some files of it by name.

    python docs/check.py README.md docs/data.md

The commands are those of the ```sh blocks of texts, and the indented lines of the docstrings of
configs/ that begin with `python` or `NAME=`. `RULES` decides whether a command is run, run with the
tiny sizes of `TINY`, only parsed and validated, or left out. Each file is checked in a scratch
directory of its own, which has the repository's files as links, the texts of `INPUTS` and the small
tests of `TESTS`.
"""

import ast
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

import zstandard

ROOT = Path(__file__).parent.parent
TEXTS = ["README.md", "CONTRIBUTING.md", "docs/*.md", "launch/*.md", "configs/*.py"]
VARIABLES = "for the commands after it"
RUN, SMALL, PARSE, DRY, SKIP = "run", "run with tiny sizes", "parsed", "make -n", "skipped"
RULES = [  # the first pattern that is found in a command decides
    (r"^make ", DRY, "only that there is this target"),
    (r"^pip install|pre-commit install", SKIP, "changes the environment"),
    (r"^\. ", SKIP, "this check has its environment"),
    (r"^git |/python -m pytest", SKIP, "an example that changes the checkout"),
    (r"^python bench/", SKIP, "measures for minutes: tests/test_bench.py"),
    (r"^curl |^lm_eval ", SKIP, "asks a server: tests/serving/"),
    (r"\b(launch/|sbatch|sky|docker)\b", SKIP, "needs a GPU or a cluster: tests/test_launch.py"),
    (r"^\w+=\S*( \w+=\S*)*$", RUN, VARIABLES),
    (r"plan .*--compile", PARSE, "compiles for minutes: tests/planning/test_plan.py"),
    (r"gptjax\.plan ", RUN, ""),
    (r"gptjax\.serve", PARSE, "serves until it is stopped: tests/test_serve.py"),
    (r"prepare .*--hub|prepare --config gpt2\w+$", PARSE, "needs the hub"),
    (r"prepare --config gpt([13]|2_124m_continue)", PARSE, "needs the files of a tokenizer"),
    (r"train .*gpt2_124m_continue", SKIP, "needs GPT-2's weights: tests/config/test_presets.py"),
    (r"convert --from (openai-|\.\./)", PARSE, "needs models of others: tests/conversion/"),
    (r"convert --run runs/(gpt2|averaged) ", PARSE, "needs a run that no page trains"),
    (r"train .*--coordinator", PARSE, "needs several machines"),
    (r"train .*--data\.mixture", PARSE, "needs several prepared directories"),
    (r"train .*--data\.path", SMALL, ""),
    (r"train --config gpt", PARSE, "needs a GPU"),
    (r"\b(runs/|config )(instruct|spam|rocstories)", PARSE, "needs examples: tests/training/"),
    (r"convert --from PEFT_DIR|\b(runs/merged|runs/chat)", PARSE, "needs adapters: tests/"),
    (r"evaluate .*--run gpt2", PARSE, "needs the weights of GPT-2"),
    (r"evaluate .*--lm-eval", RUN, ""),
    (r"evaluate .*--compare", RUN, ""),
    (r"gptjax\.", SMALL, ""),
]
REPLACED = [  # in commands that are run with tiny sizes
    (r"--tokenizer gpt2", "--tokenizer bytes"),  # gpt2's file may not be at hand
    (r"data/NAME", "data/tiny"),
]
FEW_STEPS = "--train.max-steps 2 --optim.warmup-steps 1 --train.updates-per-call 1"
TINY = {
    "train": f"{FEW_STEPS} --train.batch-tokens 64 "
    "--train.micro-batch 1 --train.eval-tokens 64 --model.n-layer 1 "
    "--model.n-head 1 --model.n-embd 8 --model.n-ctx 32 --model.unroll 1 --model.dtype float32",
    "generate": "--max-new-tokens 2",
    "evaluate": "--limit 2",
    "prepare": "",
    "convert": "",
}
SCENE = {"activity_label": "Tea", "ctx_a": "A", "ctx_b": "b", "ctx": "A b", "label": 1}
TESTS = {  # a line or a record of each published test, and of other files that are read
    "wiki.test.raw": [" = A = ", " A page , of a line . ", " = B = ", " It 's another . "],
    "hellaswag_val.jsonl": [SCENE | {"endings": [f"{end}." for end in ("a", "bc", "d", "ef")]}] * 3,
    "lambada_test.jsonl": [{"text": "Once upon a time"}] * 3,
    "prompts.txt": ["Once", "Once upon"],
    "questions.jsonl": [{"context": "A", "choices": ["b", "c"], "label": 0}] * 3,
}
INPUTS = [
    *("a.txt", "b.txt", "books/one.txt", "web/two.jsonl.zst"),
    *("messages.txt", "tinyshakespeare.txt"),
]


def commands(path: Path) -> list[str]:
    """The commands of a text; one that needs several lines, as a loop does, stays one."""
    text = path.read_text()
    if path.suffix == ".py":
        text = ast.get_docstring(ast.parse(text)) or ""
        blocks = re.findall(r"(?:^    (?:\w+=|python ).*\n?)+", text, re.M)
    else:
        blocks = re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)
    found: list[str] = []
    for block in blocks:
        waiting = ""
        for line in block.splitlines():
            waiting += re.sub(r"(^|\s+)# .*", "", line).strip() + "\n"
            if waiting.strip() and not waiting.endswith("\\\n") and is_complete(waiting):
                found.append(waiting.strip().replace("\\\n", ""))
                waiting = ""
        if waiting.strip():
            found.append(waiting.strip())
    return found


def is_complete(command: str) -> bool:
    """Whether a shell could run this: nothing is left open."""
    return not subprocess.run(["bash", "-n", "-c", command], capture_output=True).returncode


def rule_of(command: str) -> tuple[str, str]:
    """What is done with a command, and why."""
    matching = (rule[1:] for rule in RULES if re.search(rule[0], command, re.S))
    return next(matching, (RUN, ""))


def scratch(directory: Path) -> dict[str, str]:
    """Fill a scratch directory; returns the environment of the commands in it."""
    for path in ROOT.iterdir():
        if path.name not in ("data", "runs", "site") and not path.name.startswith("."):
            (directory / path.name).symlink_to(path)
    for name in INPUTS:
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        lines = [f"Once upon a time, {name} had the line {i}." for i in range(2000)]
        records = "".join(f'{{"text": "{line}"}}\n' for line in lines).encode()
        text = "\n".join(lines).encode()
        path.write_bytes(text if path.suffix == ".txt" else zstandard.compress(records))
    for name, rows in TESTS.items():
        lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
        (directory / name).write_text("\n".join(lines) + "\n")
    for name, options in (("bin", ""), ("parse", f'"{Path(__file__).resolve()}" --parse')):
        python = directory / name / "python"
        python.parent.mkdir()
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" {options} "$@"\n')
        python.chmod(0o755)
    return {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}


def check_file(path: Path) -> list[tuple[str, str, str]]:
    """Check the commands of a file in their order: (outcome, command, reason or output)."""
    results = []
    with tempfile.TemporaryDirectory(prefix="gptjax-docs-") as name:
        environment, variables = scratch(Path(name)), ""
        for command in commands(path):
            how, reason = rule_of(command)
            if how == SKIP:
                unknown = unknown_names(command)
                results.append(("FAILED" if unknown else SKIP, command, unknown or reason))
                continue
            runnable = smaller(command) if how == SMALL else command
            runnable = re.sub("^make ", "make -n ", runnable) if how == DRY else runnable
            first = f"{name}/{'parse' if how == PARSE else 'bin'}"
            done = subprocess.run(
                ["bash", "-c", f"{variables}\n{runnable}"],
                cwd=name, env={**environment, "PATH": f"{first}:{environment['PATH']}"},
                capture_output=True, text=True,
            )  # fmt: skip
            if done.returncode:
                results.append(("FAILED", runnable, (done.stdout + done.stderr)[-2000:]))
            else:
                results.append((how, command, reason))
            if reason == VARIABLES:
                variables += command + "\n"
    return results


def smaller(command: str) -> str:
    """The same command with tiny sizes."""
    for pattern, replacement in REPLACED:
        command = re.sub(pattern, replacement, command)
    verb = re.search(r"gptjax\.(\w+)", command)
    if "init-from" in command:  # whose shape comes from elsewhere
        return f"{command} {FEW_STEPS}"
    return f"{command} {TINY[verb[1]]}" if verb and "--inspect" not in command else command


def unknown_names(command: str) -> str:
    """A complaint about extras, files and configs of a command that do not exist, or ''."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [name for group in re.findall(r"\.\[(.*?)\]", command) for name in group.split(",")]
    paths = re.findall(r"\b(?:bench|launch)/[\w.]+", command)
    configs = re.findall(r"(?:launch/\S+ |CONFIG=)([a-z]\w+)", command)
    unknown = [extra for extra in extras if extra not in project["optional-dependencies"]]
    unknown += [path for path in paths if not (ROOT / path).exists()]
    unknown += [name for name in configs if not (ROOT / "configs" / f"{name}.py").exists()]
    return f"there is no {', '.join(unknown)}" if unknown else ""


def parse_only(argv: list[str]) -> None:
    """Check the flags of `-m gptjax.VERB FLAGS...` as the verb does, and run nothing."""
    from gptjax import cli, convert
    from gptjax.config import Config
    from gptjax.config.presets import load_config
    from gptjax.preparation import options

    _, module, *flags = argv
    command = getattr(import_module(module), f"{module.removeprefix('gptjax.').title()}Command")
    if issubclass(command, cli.ConfigCommand):
        cli.parse_config(command, flags, module)
        return
    parsed = cli.parse(command, flags, module)
    if isinstance(parsed, convert.ConvertCommand):
        convert.check_direction(parsed)
    if isinstance(parsed, options.PrepareCommand):
        config = load_config(parsed.config) if parsed.config else Config()
        data = options.data_of(parsed, config)
        options.check(parsed, dataclasses.replace(config, data=data))


def main(argv: list[str]) -> int:
    """Check the given files, or all; returns 1 if a command failed."""
    if argv[:1] == ["--parse"]:
        parse_only(argv[1:])
        return 0
    named = argv or [str(p.relative_to(ROOT)) for text in TEXTS for p in sorted(ROOT.glob(text))]
    checked = ThreadPoolExecutor(2).map(check_file, map(ROOT.joinpath, named))
    failed = 0
    for name, results in zip(named, checked, strict=True):
        for outcome, command, reason in results:
            print(f"{outcome:20}{name}: {' '.join(command.split())}", flush=True)
            if reason:
                print(f"{'':20}{reason}")
            failed += outcome == "FAILED"
    print(f"{failed} failed")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
