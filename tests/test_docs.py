"""The programs of docs/ find mistakes and make links."""

import importlib
import json
import sys
from types import ModuleType

import pytest
from conftest import ROOT


def program(name: str) -> ModuleType:
    """A program of docs/, which is no package."""
    sys.path.insert(0, str(ROOT / "docs"))
    return importlib.import_module(name)


check = program("check")
TEXT = """
```sh
make test         # a comment
python -m gptjax.plan --config tiny \\
  --gpus 2 # another
for chunk in 0 2; do
  echo $chunk
done
NAME=tiny
```
    python -m gptjax.train --config tiny
"""


def test_commands_are_whole_and_without_comments(tmp_path):
    (tmp_path / "a.md").write_text(TEXT)
    assert [" ".join(command.split()) for command in check.commands(tmp_path / "a.md")] == [
        "make test",
        "python -m gptjax.plan --config tiny --gpus 2",
        "for chunk in 0 2; do echo $chunk done",
        "NAME=tiny",
    ]


def test_commands_of_a_config_are_those_of_its_docstring(tmp_path):
    path = tmp_path / "a.py"
    path.write_text(f'"""A config.\n\nWords.\n{TEXT.split("```")[-1]}"""\nprint(1,\n    x=2)\n')
    assert check.commands(path) == ["python -m gptjax.train --config tiny"]


BAD = {
    "a target that is not there": "make nothing",
    "an extra that is not there": "pip install -e '.[cuda99]'",
    "a script that is not there": "launch/nothing.sh tiny",
    "a config of a script that is not there": "launch/node.sh nothing",
    "a config that is not there": "python -m gptjax.train --config gpt2_nothing",
    "a flag that is not there": "python -m gptjax.prepare --hub a/b --no-such-flag 3 --out d",
    "flags that exclude each other": "python -m gptjax.prepare --hub a/b --input c --out d",
    "a program that fails": "false",
}


def test_every_kind_of_mistake_fails(tmp_path, capsys):
    path = tmp_path / "bad.md"
    path.write_text("```sh\n" + "\n".join(BAD.values()) + "\n```\n")
    assert check.main([str(path)]) == 1
    outcomes = [
        line.split()[0] for line in capsys.readouterr().out.splitlines() if line[:1].strip()
    ]
    assert outcomes.count("FAILED") == len(BAD)


def test_commands_that_cannot_run_here_are_named_with_the_reason(tmp_path, capsys):
    path = tmp_path / "good.md"
    path.write_text(
        f"```sh\nA=tiny B=2\necho $A > {tmp_path}/out\nsbatch launch/slurm.sbatch\n```\n"
    )
    assert check.main([str(path)]) == 0
    assert (tmp_path / "out").read_text() == "tiny\n"
    skipped = capsys.readouterr().out.split("skipped", 1)[1]
    assert "cluster" in skipped


def test_names_of_files_become_links():
    pytest.importorskip("mkdocs", reason="extra docs")
    pages = program("pages")

    class Here:
        class file:
            src_uri = "docs/data.md"

    text = "`gptjax/cli.py`, [it](../gptjax/cli.py), [a page](tour.md#names), `no/such.py`\n"
    fence = "```\n`gptjax/cli.py`\n```\n"
    link = "../source/gptjax/cli.py.html"
    assert pages.on_page_markdown(text + fence, Here, None, None) == (
        f"[`gptjax/cli.py`]({link}), [it]({link}), [a page](tour.md#names), `no/such.py`\n{fence}"
    )
    assert pages.named_in("docs/data.md", text.encode()) == {"gptjax/cli.py", "docs/tour.md"}


def test_the_notebook_is_committed_without_outputs():
    cells = json.loads((ROOT / "docs" / "first_hour.ipynb").read_text())["cells"]
    assert [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")] == []
