"""A message about a value says where the value comes from, unless it was typed."""

import pytest

from gptjax.base.errors import UserError
from gptjax.config.origins import Origins
from gptjax.config.presets import load_config

TINY = load_config("tiny")


def explained(message: str, *typed: str, preset: str | None = "my own/tiny.py") -> str:
    """What is added to a message."""
    whole = Origins(TINY, frozenset(typed), preset).explain(message)
    assert whole.startswith(message)
    return whole[len(message) :]


def test_values_are_given_as_flags_with_their_origin():
    got = explained("data.tokenizer bytes and model.n_ctx 64, but train.seed is odd")
    own = "--data.tokenizer bytes, --model.n-ctx 64 from --config 'my own/tiny.py'"
    assert got == f" ({own}; --train.seed 1337 by default)"


def test_what_was_typed_needs_no_explanation():
    assert explained("model.n_ctx 64", "model.n_ctx") == ""


@pytest.mark.parametrize(
    "message", ["--model.n-ctx 64", "train.context", "a.b data.nothing model.", "sub.model.n_ctx"]
)
def test_advice_and_what_is_no_value_are_passed_over(message):
    assert explained(message) == ""


def test_an_error_on_its_way_is_explained():
    origins = Origins(TINY, frozenset(), "tiny")
    with pytest.raises(UserError, match=r"--model.n-ctx 64 from") as caught, origins.explained():
        raise UserError("model.n_ctx is long")
    assert str(caught.value).startswith("model.n_ctx is long (")
