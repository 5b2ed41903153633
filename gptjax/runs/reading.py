"""Reads the trees and the cursor of one step whose files are what was written."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import jax
import orbax.checkpoint as ocp
from etils import epath

from gptjax.base.errors import UserError
from gptjax.base.tree import Tree
from gptjax.cluster.agreement import first_complaint
from gptjax.runs.digests import difference
from gptjax.runs.naming import ADAPTERS, PARAMS
from gptjax.runs.reasons import reason_of


class RestoreError(UserError):
    """A checkpoint is what was written but could not be read; it is not moved.

    Nobody can tell why: memory or permissions may be short, or another process may have died.
    """

    exit_code = 74  # sysexits.h: EX_IOERR


class Restored(NamedTuple):
    """A step as it came back: its trees by their names, and its cursor."""

    step: int
    items: dict[str, Tree]
    cursor: dict


def own_item(step_dir: Path) -> str:
    """The item of a step that is trained: params, or adapters where it has no params."""
    is_adapted = (step_dir / ADAPTERS).exists() and not (step_dir / PARAMS).exists()
    return ADAPTERS if is_adapted else PARAMS


def restored_or_fault(
    manager: ocp.CheckpointManager, step: int, abstract: dict[str, Tree], is_signed: bool
) -> Restored | str:
    """A step that is what was in memory when it was saved, or the reason why it is not.

    All processes get the same kind. Raises `RestoreError` if a signed step cannot be read; one that
    nobody signed may be damaged.
    """
    restored = None
    try:
        restored = read_step(manager, step, abstract)
        fault = difference(restored.items, restored.cursor)
    except RestoreError as error:
        if is_signed:
            raise
        fault = str(error)
    fault = first_complaint(fault)
    return restored if restored is not None and fault is None else str(fault)


def read_step(manager: ocp.CheckpointManager, step: int, abstract: dict[str, Tree]) -> Restored:
    """The items that `abstract` names, placed and typed as it says; raises `RestoreError`."""
    args = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
    with _failing_as(manager.directory / str(step)):
        items = manager.restore(
            step, args=ocp.args.Composite(**args, cursor=ocp.args.JsonRestore())
        )
    return Restored(step, {name: items[name] for name in abstract}, items["cursor"])


def read_as_saved(manager: ocp.CheckpointManager, step: int, item: str, abstract: Tree) -> Restored:
    """One item, placed as `abstract` says, in the types it was saved in, as its digest needs."""
    place = manager.directory / str(step)
    with _failing_as(place):
        saved = ocp.StandardCheckpointHandler().metadata(place / item).tree
        asked = jax.tree.map(
            lambda x, found: jax.ShapeDtypeStruct(x.shape, found.dtype, sharding=x.sharding),
            abstract,
            saved,
        )
    return read_step(manager, step, {item: asked})


@contextmanager
def _failing_as(place: epath.Path) -> Iterator[None]:
    """Turn whatever is raised into a `RestoreError` of the step at `place`."""
    try:
        yield
    except Exception as error:
        raise RestoreError(
            f"checkpoint {place} cannot be restored: {reason_of(error)}; if every start ends like "
            "this, move it away, and the one before is taken"
        ) from error
