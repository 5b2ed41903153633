"""The command line of lm-evaluation-harness for a run, and its tasks on local files.

    python -m gptjax.evaluate --run RUN --data hellaswag=hellaswag_val.jsonl \
        --lm-eval --tasks hellaswag --limit 100

A task of the harness asks the hub for its data. `write_local_task` writes the same task with a
local file in that place; everything else is included from the published task, so its figures are
those of the harness, without a network.
"""

import json
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gptjax.base.errors import ConfigError, UserError
from gptjax.evaluation.harness import NAME, harness_model, model_class
from gptjax.evaluation.scoring import Scorer
from gptjax.evaluation.wikitext import FIELD, read_pages
from gptjax.generation.loaded import LoadedRun

SPLITS = ("test_split", "validation_split", "training_split")  # the first one there is measured
OURS = {"--model", "-M", "--model_args", "-a", "--device", "--batch_size", "-b"}  # of the run


def run_harness(run: LoadedRun, scorer: Scorer, data: str, words: Sequence[str]) -> int:
    """Run the command line `lm-eval WORDS` with a run as its model; returns its exit code.

    `data` has local files, as `read_task_files` takes them. Raises `ConfigError` for words that the
    run decides, `UserError` as `write_local_task` does.
    """
    files = read_task_files(data)
    given = {word.split("=")[0] for word in words}
    taken = sorted(given & (OURS | ({"--include_path"} if files else set())))
    if taken:
        raise ConfigError(
            [f"{word} after --lm-eval is set already: leave it out" for word in taken]
        )
    model = harness_model(run, scorer)
    type(model).given = model
    from lm_eval.__main__ import cli_evaluate

    with tempfile.TemporaryDirectory(prefix="gptjax-evaluate-") as made:
        for task, file in files.items():
            write_local_task(task, file, Path(made))
        own = ["--model", NAME, "--batch_size", str(scorer.batch_rows)]
        before, sys.argv = sys.argv, ["lm-eval", *own]
        sys.argv += ["--include_path", made] if files else []
        sys.argv += words
        try:
            cli_evaluate()
        except ValueError as error:
            if "Tasks not found" in str(error) or "No tasks specified" in str(error):
                raise UserError(f"lm-evaluation-harness: {error}; name some with --tasks") from None
            raise
        finally:
            sys.argv = before
    return 0


def read_task_files(text: str) -> dict[str, str]:
    """Read TASK=FILE or several of them with commas between; raises `ConfigError`.

    >>> read_task_files("hellaswag=a.jsonl,wikitext=b.parquet")
    {'hellaswag': 'a.jsonl', 'wikitext': 'b.parquet'}
    """
    found = {}
    for part in filter(None, text.split(",")):
        task, equals, file = part.partition("=")
        if not (task and equals and file):
            raise ConfigError(
                [f"--data with --lm-eval is TASK=FILE, or TASK=FILE,TASK=FILE, not {part}"]
            )
        found[task] = file
    return found


def write_local_task(task: str, data: str, directory: Path) -> Path:
    """Write to `directory` the harness's task of this name on the file `data`; returns its path.

    The file has the rows of the published data set, as JSON lines or Parquet; for `wikitext` also
    wiki.test.raw. What `datasets` caches is in `directory` too. Raises `UserError` for a task that
    the harness does not have, and for a missing file.
    """
    source = Path(data)
    if not source.is_file():
        raise UserError(f"there is no file {data} for the task {task}: expected JSON or Parquet")
    published = _published_path(task)
    fields = _fields(published)
    split = next((s for s in SPLITS if isinstance(fields.get(s), str)), None)
    if split is None:
        raise UserError(f"the task {task} of lm-evaluation-harness names no split of its data")
    directory.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as file:
        head = file.read(2**12).lstrip()
    is_parquet = head.startswith(b"PAR1")
    if task == "wikitext" and not is_parquet and head[:1] not in (b"{", b"["):
        source = directory / "wikitext.jsonl"
        pages = [json.dumps({FIELD: page}) + "\n" for page in read_pages(data)]
        source.write_text("".join(pages), "utf-8")
    settings = {
        "include": str(published),
        "task": task,
        "dataset_path": "parquet" if is_parquet else "json",
        "dataset_name": None,
        "dataset_kwargs": {
            "data_files": {fields[split]: str(source.resolve())},
            "cache_dir": str(directory.resolve() / "cache"),
        },
        **{other: None for other in SPLITS if other != split},
    }
    path = directory / f"{task}.yaml"
    path.write_text(json.dumps(settings, indent=1) + "\n", "utf-8")  # JSON is YAML
    return path


def _published_path(task: str) -> Path:
    """The file of a task in the installed harness; its own index takes half a minute to build."""
    model_class()  # says what to install
    import lm_eval.tasks

    tasks, line = Path(lm_eval.tasks.__path__[0]), re.compile(rf"(?m)^task: {re.escape(task)}\s*$")

    def has_it(path: Path) -> bool:
        return line.search(path.read_text("utf-8", "replace")) is not None

    files = sorted(tasks.rglob("*.yaml"), key=lambda path: path.stem != task)
    found = next(filter(has_it, files), None)
    if found is None:
        raise UserError(
            f"lm-evaluation-harness has no task {task}: python -m lm_eval ls tasks lists them"
        )
    return found


def _fields(path: Path) -> dict[str, Any]:
    """The fields of a task's file and of those that it includes; functions are left out."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Reads a tag as None."""

    Loader.add_multi_constructor("!", lambda loader, suffix, node: None)
    fields = yaml.load(path.read_text("utf-8"), Loader)
    includes = fields.get("include") or []
    merged: dict[str, Any] = {}
    for other in [includes] if isinstance(includes, str) else includes:
        merged |= _fields(path.parent / other)
    return merged | fields
