"""RUN, RUN@best, RUN@latest, RUN@STEP: the same on every command line."""

from pathlib import Path

import pytest

from gptjax.base.errors import UserError
from gptjax.runs.naming import CheckpointName, read_checkpoint_name


@pytest.mark.parametrize(
    ("text", "path", "which"),
    [
        ("runs/x", "runs/x", "best"),
        ("runs/x@best", "runs/x", "best"),
        ("runs/x@latest", "runs/x", "latest"),
        ("runs/x@0500", "runs/x", "500"),
        ("runs@home/x", "runs@home/x", "best"),
        ("runs@home/x@7", "runs@home/x", "7"),
    ],
)
def test_a_checkpoint_has_a_directory_and_a_name(text, path, which):
    assert read_checkpoint_name(text) == (Path(path), which)


def test_a_directory_with_an_at_sign_is_a_directory(tmp_path):
    directory = tmp_path / "x@3"
    directory.mkdir()
    assert read_checkpoint_name(directory) == (directory, "best")
    assert read_checkpoint_name(f"{directory}@4") == (directory, "4")


@pytest.mark.parametrize("text", ["x@newest", "x@", "@7", "x@-1", "x@\u00b2"])
def test_another_word_after_the_sign_is_refused(text):
    with pytest.raises(UserError, match="expected RUN, RUN@best, RUN@latest or RUN@STEP"):
        read_checkpoint_name(text)


def test_a_name_is_written_as_it_is_read():
    for text in ("runs/x", "runs/x@latest", "runs/x@7"):
        assert str(read_checkpoint_name(text)) == text
    assert str(CheckpointName(Path("x"))) == "x"
