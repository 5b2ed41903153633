"""Worker processes do not run the script that asked for them."""

import subprocess
import sys

from conftest import ROOT

SCRIPT = """
import gptjax.preparation.pool as pool
from gptjax.prepare import prepare

print("the script runs")
pool.PROCESS_BYTES = 1
assert prepare("--input words.txt --out data --workers 2".split()) == 0
assert __name__ == "__main__"
"""


def test_a_script_without_a_guard_prepares_once(tmp_path, text_file):
    (tmp_path / "words.txt").write_bytes(text_file.read_bytes())
    (tmp_path / "script.py").write_text(SCRIPT)
    result = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert result.stdout.count("the script runs") == 1
    assert (tmp_path / "data" / "manifest.json").exists()
