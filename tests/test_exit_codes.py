"""The exit codes in launch/README.md are those of the code, and of the scripts that start again."""

import ast
import re

import yaml
from conftest import ROOT

from gptjax.cluster.agreement import BUG
from gptjax.cluster.stop import STOPS

LAUNCH = ROOT / "launch"


def table() -> dict[int, str]:
    """The codes in launch/README.md, and what it says about another start."""
    text = (LAUNCH / "README.md").read_text()
    (part,) = re.findall(r"## Exit codes\n(.*?)\n\n[^|]", text, re.DOTALL)
    rows = re.findall(r"^\| (\d+) \| .+ \| ([^|]+) \|$", part, re.MULTILINE)
    return {int(code): restarted for code, restarted in rows}


def codes_of_errors() -> set[int]:
    """What classes of errors give as `exit_code`."""
    found = set()
    for path in (ROOT / "gptjax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            for line in node.body if isinstance(node, ast.ClassDef) else []:
                if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "exit_code":
                    found.add(ast.literal_eval(line.value))
    return found


def test_the_table_has_every_code_and_no_other():
    codes = {0, BUG, *codes_of_errors(), *(128 + number for number in STOPS)}
    assert codes == set(table()) == {0, 1, 2, 70, 74, 75, 129, 130, 138, 143}


def final_codes(script: str) -> set[int]:
    """The codes after which a script ends, without another attempt."""
    text = (LAUNCH / script).read_text()
    (listed,) = re.findall(r"^ *([\d| ]+)\) exit \"\$code\"", text, re.MULTILINE)
    return set(map(int, listed.split("|")))


def test_scripts_start_again_what_the_table_says():
    said = table()
    assert all(answer.startswith(("yes", "no")) for answer in said.values())
    never = {code for code, answer in said.items() if answer.startswith("no")}
    queued = {code for code, answer in said.items() if "slurm.sbatch" in answer}
    assert final_codes("node.sh") == never
    assert final_codes("slurm.sbatch") == never - queued
    slurm = (LAUNCH / "slurm.sbatch").read_text()
    (requeued,) = re.findall(r"^ *([\d| ]+)\) # saved.*\n +scontrol requeue", slurm, re.MULTILINE)
    assert set(map(int, requeued.split("|"))) == queued
    _, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    rules = job["spec"]["podFailurePolicy"]["rules"]
    (mistakes,) = [rule["onExitCodes"]["values"] for rule in rules if "onExitCodes" in rule]
    assert set(mistakes) == {1, 2}
