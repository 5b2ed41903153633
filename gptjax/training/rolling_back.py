"""Going back from a rise of the loss: an earlier checkpoint, and on with other data.

As PaLM was trained (Chowdhery et al. 2022, section 5.1): from a checkpoint before the rise, the
data of all steps since that checkpoint are passed over. The decision is written down before
anything changes, so that a run that is killed in the middle of it ends it at its next start.
"""

from typing import Any

from gptjax.base.errors import UserError
from gptjax.cluster.agreement import broadcast_from_0, on_process_0
from gptjax.runs.checkpoint import Checkpointer, Say
from gptjax.runs.directory import RunDir
from gptjax.runs.incidents import (
    RISE,
    ROLLBACK,
    Incident,
    note_incident,
    read_incidents,
    write_incidents,
)
from gptjax.training.setup import Setup
from gptjax.training.spikes import Rise

MOST = 3  # times that one run goes back
ABANDONED = "the loss rose after it"
NOWHERE = -1  # process 0 sends this to the others if the run has not gone back yet


def decide(rise: Rise, setup: Setup, checkpointer: Checkpointer, run_dir: RunDir, say: Say) -> bool:
    """Whether to go back from a rise; if so, that is written down now, and `settle` does it.

    Without a checkpoint from before the rise the run goes on. All processes call this together,
    while nothing is being saved. Raises `UserError` if the run went back too often already.
    """
    # the loss of a step is that of the parameters before it: the step before may be the bad one
    before, guards = rise.first - 1, setup.safeguards
    if not broadcast_from_0(any(step < before for step in checkpointer.steps())):
        say(f"{rise.words}. There is no checkpoint from before that, so the run goes on")
        guards.watch.pass_over()
        return False
    steps = [rise.first, rise.last]
    if guards.rollbacks >= MOST:
        good = checkpointer.go_back(before, say, ABANDONED)
        gave_up: Incident = {"kind": RISE, "steps": steps, "checkpoint": good}
        on_process_0(lambda: note_incident(run_dir.path, gave_up))
        raise UserError(
            f"{rise.words}. The run went back {MOST} times already, so other data are no remedy. "
            f"The checkpoint of step {good} is earlier and was verified now: rerun with a lower "
            "--optim.peak-lr, or with another --train.rollback-zscore"
        )
    rows = setup.source.rows_before(rise.last)  # of the data that all steps so far have read
    decision: Incident = {
        "kind": ROLLBACK, "steps": steps, "before": before, "rows": rows, "to": None
    }  # fmt: skip
    say(rise.words)
    on_process_0(lambda: note_incident(run_dir.path, decision))
    return True


def settle(setup: Setup, checkpointer: Checkpointer, run_dir: RunDir, say: Say) -> None:
    """Go back as it was decided, if that was not done yet, and remember where to.

    Every start does this before it restores anything; all processes call it together.
    """
    guards = setup.safeguards
    incidents = on_process_0(lambda: read_incidents(run_dir.path)) or []
    taken = [incident for incident in incidents if incident["kind"] == ROLLBACK]
    guards.rollbacks = int(broadcast_from_0(len(taken)))
    if not guards.rollbacks:
        return
    last: dict[str, Any] = taken[-1] if taken else {}
    before, rows, known = (
        int(broadcast_from_0(NOWHERE if last.get(name) is None else last[name]))
        for name in ("before", "rows", "to")
    )
    if known == NOWHERE:
        if (found := checkpointer.go_back(before, say, ABANDONED)) is None:
            return  # none can be read, which restoring reports
        known = found
        last["to"] = known
        on_process_0(lambda: write_incidents(run_dir.path, incidents))
        say(
            f"going back to step {known}, and on from there with other data: {guards.rollbacks} of "
            f"{MOST} times"
        )
    guards.went_to = known, rows
