"""What launch/box.sh asks of gptjax on a rented machine, in the root of the checkout there.

    python launch/box.py needs CONFIG [flags]      what the run must bring from home, one a line
    python launch/box.py prepare CONFIG [flags]    make the data, if the run cannot do that itself
    python launch/box.py copy RUN [STEP...]        fill RUN/.leaving, which `--fetch` brings home

The lines of `needs` are `need PATH`, or `either PATH` with lines `or PATH` after it: either the
first one, which is prepared data, or all others, from which it can be made. Paths that do not begin
in the checkout are the user's own affair.
"""

# ruff: noqa: E402
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, os.getcwd())  # the checkout, wherever an older gptjax may be installed

from gptjax.cluster.environment import import_jax

import_jax()  # what follows imports it too, but would let it report on drivers

from gptjax.base.errors import UserError
from gptjax.cli import main, parse_config
from gptjax.config import Config
from gptjax.config.names import parse_evaluation, parse_source
from gptjax.config.presets import load_config
from gptjax.data.keeping import KEPT
from gptjax.data.manifest import is_prepared
from gptjax.preparation.pipeline import how_to_prepare
from gptjax.prepare import prepare
from gptjax.runs.directory import LOCK, RunDir
from gptjax.runs.integrity import DAMAGED, verify
from gptjax.runs.naming import read_checkpoint_name
from gptjax.runs.ranking import CURSOR_FILE, Ranking
from gptjax.train import TrainCommand
from gptjax.training.tasks import task_of

LEAVING = ".leaving"
STAYS = {"checkpoints", DAMAGED, LOCK, LEAVING}
"""What `copy` leaves out, or chooses from."""


def box(argv: Sequence[str]) -> int:
    """One of the actions above."""
    action, *words = argv
    if action == "copy":
        for step in copy(RunDir(Path(words[0])), {int(step) for step in words[1:]}):
            tell("step", step)
        return 0
    if action == "needs" and (model := _missing_model(words)):
        tell("need", model)  # its shape is needed before the rest can be checked
        return 0
    command = parse_config(TrainCommand, ["--config", *words], "launch/ssh.sh")
    if action == "needs":
        for what, path in needs(command.run, RunDir(command.run_path)):
            if not Path(path).is_absolute():
                tell(what, path)
        return 0
    return prepare_for(command.run, words[0])


def tell(key: str, value: object) -> None:
    """A line that launch/ssh.sh reads."""
    print(f"gptjax:{key}\t{value}", flush=True)


def _missing_model(words: Sequence[str]) -> str | None:
    """The path that --train.init-from names, if nothing is there and no run has begun from it."""
    values = [word.partition("=")[2] or next_word for word, next_word in
              zip(words, [*words[1:], ""], strict=True)
              if word.partition("=")[0].replace("_", "-") == "--train.init-from"]  # fmt: skip
    if not values:
        return None
    path = read_checkpoint_name(values[-1]).path
    return None if path.exists() or path.is_absolute() else str(path)


def needs(config: Config, run: RunDir) -> Iterator[tuple[str, str]]:
    """What a run reads and cannot find: (need, either or or; path)."""
    data = config.data
    if not task_of(config).reads_shards:
        files = [data.examples, data.val_examples, data.test_examples]
        if not (run.path / KEPT).exists():
            yield from (("need", file) for file in files if file and not Path(file).exists())
    elif data.mixture:
        sources = [parse_source(source).path for source in data.mixture]
        yield from (("need", path) for path in sources if not is_prepared(Path(path)))
    elif not (is_prepared(Path(data.path)) or data.hub):
        yield "either", data.path
        if data.source is None:
            inputs = data.inputs or (data.path,)
            yield from (("or", path) for path in inputs if not Path(path).exists())
    tests = [parse_evaluation(test)[1] for test in config.train.evaluate_on]
    yield from (("need", file) for file in tests if not Path(file).exists())


def prepare_for(config: Config, name: str) -> int:
    """Prepare the data of a run, unless it is there, or the run prepares its own text."""
    data = config.data
    if not task_of(config).reads_shards or data.mixture or is_prepared(Path(data.path)):
        return 0
    if data.source is not None and not data.hub:
        return 0
    words = shlex.split(how_to_prepare(name, config, load_config(name).data))
    return prepare(words[words.index("gptjax.prepare") + 1 :])


def copy(run: RunDir, known: set[int]) -> list[int]:
    """Fill RUN/.leaving with all that goes home; the steps, newest first, without damaged ones.

    The checkpoints are the newest that verifies and the best, as links, so that they stay while the
    run deletes its own. Those that are `known` at home already are named and not linked.
    """
    if not run.config.exists():
        raise UserError(f"there is no run in {run.path} of this machine yet")
    leaving = run.path / LEAVING
    shutil.rmtree(leaving, ignore_errors=True)
    (leaving / "checkpoints").mkdir(parents=True)
    wanted = [*reversed(run.steps())]
    chosen = [step for step in [_first_good(run, leaving, wanted)] if step is not None]
    best = Ranking.of(run.checkpoints, run.steps()).best()
    if best not in (None, *chosen):
        chosen += [step for step in [_first_good(run, leaving, [best])] if step is not None]
    for step in known.intersection(chosen):
        shutil.rmtree(leaving / "checkpoints" / str(step))
    for path in run.path.iterdir():  # after the checkpoints: no step without its metrics
        if path.name in STAYS or path.suffix == ".tmp" or path.name.endswith(".arriving"):
            continue
        if path.is_dir():
            shutil.copytree(path, leaving / path.name)
        else:
            shutil.copy2(path, leaving / path.name)
    metrics = leaving / run.metrics.name
    if metrics.exists():  # the last row may be half written
        whole = metrics.read_bytes().rpartition(b"\n")
        metrics.write_bytes(whole[0] + whole[1])
    return chosen


def _first_good(run: RunDir, leaving: Path, steps: Sequence[int]) -> int | None:
    """Link the first of `steps` that verifies; None if there is none."""
    for step in steps:
        place = leaving / "checkpoints" / str(step)
        try:
            shutil.copytree(run.checkpoints / str(step), place, copy_function=os.link)
        except (OSError, shutil.Error):  # the run has just deleted it
            shutil.rmtree(place, ignore_errors=True)
            continue
        if (problem := verify(place, needed=(CURSOR_FILE,))) is None:
            return step
        print(f"note: the checkpoint of step {step} is damaged: {problem}", file=sys.stderr)
        shutil.rmtree(place)
    return None


if __name__ == "__main__":
    main(box)
