"""Other libraries print nothing of their own; what they say of others' code is left alone."""

import logging
import sys
import types
import warnings

import pytest

from gptjax.runs import quiet
from gptjax.runs.curves import plot_curves


@pytest.fixture
def unraised(monkeypatch) -> list[object]:
    """What reaches the hook that was there before."""
    seen: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)
    quiet.silence_orbax()
    quiet.silence_orbax()  # for another checkpointer
    return seen


def test_a_closed_event_loop_is_not_told_but_other_errors_are(unraised):
    for error in (RuntimeError("Event loop is closed"), RuntimeError("x"), ValueError("y")):
        sys.unraisablehook(types.SimpleNamespace(exc_value=error))  # pyright: ignore
    assert [str(one.exc_value) for one in unraised] == ["x", "y"]  # pyright: ignore


def test_a_coroutine_that_never_began_is_not_told():
    with warnings.catch_warnings(record=True) as seen:
        quiet.silence_orbax()
        warnings.warn("coroutine 'f' was never awaited", RuntimeWarning, stacklevel=1)
    assert seen == []


def test_curves_are_drawn_without_a_word_of_matplotlib(tmp_path, caplog, monkeypatch):
    from matplotlib.figure import Figure

    draw = Figure.subplots

    def warned(*args, **more):
        logging.getLogger("matplotlib.font_manager").warning("building the font cache")
        return draw(*args, **more)

    monkeypatch.setattr(Figure, "subplots", warned)
    with warnings.catch_warnings(record=True) as seen:
        plot_curves([{"step": 1, "train_loss": 2.0}], 64, "\u65e5\u672c", tmp_path / "loss.png")
    assert (tmp_path / "loss.png").exists()
    assert seen == []
    assert caplog.records == []
    logging.getLogger("matplotlib").warning("for others")
    assert len(caplog.records) == 1
