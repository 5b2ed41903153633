"""Checks of the arguments of layers: types, and shapes against the letters of a name.

The checks run while a function is traced, on types and shapes alone, so they add nothing to the
compiled program. They cannot see values, such as ids outside the vocabulary.
"""

import math
from collections.abc import Mapping
from functools import cache
from operator import index
from typing import Any, SupportsIndex

import jax.core
import jax.numpy as jnp
from jax import Array

from gptjax.config import Config, ModelConfig
from gptjax.config.validation import find_problems


def floating(name: str, x: Any) -> Array:
    """An array of floats: integers and booleans become float32, floats keep their type.

    Raises `ValueError` with the name for complex numbers, keys, text, and rows of unequal length.

    >>> floating("x", [1, 2]).dtype, floating("x", jnp.ones(2, "bfloat16")).dtype
    (dtype('float32'), dtype(bfloat16))
    """
    x = _array(name, x)
    if jnp.issubdtype(x.dtype, jnp.floating):
        return x
    if jnp.issubdtype(x.dtype, jnp.integer) or x.dtype == bool:
        return x.astype(float)  # float64 where jax has 64-bit types, as `jnp.sin` does
    raise ValueError(f"{name} is {x.dtype}: expected real numbers")


def with_last_axis(name: str, x: Any) -> Array:
    """`floating`, with at least one axis and a width: [..., D].

    >>> with_last_axis("x", [1, 2]).shape
    (2,)
    """
    x = floating(name, x)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"{name} has shape {x.shape}: expected [..., D]")
    return x


def integers(name: str, x: Any) -> Array:
    """An array of integers, 32 bits at least; raises `ValueError` with the name for other types.

    >>> integers("tokens_BT", [[0, 1]]).dtype
    dtype('int32')
    >>> integers("tokens_BT", [[0.0, 1.0]])
    Traceback (most recent call last):
        ...
    ValueError: tokens_BT is float32: expected integers
    """
    x = _array(name, x)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise ValueError(f"{name} is {x.dtype}: expected integers")
    return x.astype(jnp.int32) if x.dtype.itemsize < 4 else x


def _array(name: str, x: Any) -> Array:
    try:
        return jnp.asarray(x)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is not an array of numbers: {error}") from error


def wide(*arrays: Array) -> Any:
    """The type of sums and statistics over these arrays: float32, or float64 if one of them is.

    >>> wide(jnp.ones(2, "bfloat16"))
    dtype('float32')
    """
    return jnp.result_type(jnp.float32, *(x.dtype for x in arrays))


def probability(name: str, rate: Any) -> Any:
    """A rate as a Python float; raises `ValueError` with the name unless it is in [0, 1).

    A traced rate comes back as it is: its value is not known yet.

    >>> probability("rate", jnp.float32(0.5))
    0.5
    >>> probability("rate", 1)
    Traceback (most recent call last):
        ...
    ValueError: rate is 1: expected a number in [0, 1)
    """
    if getattr(rate, "shape", ()) != ():
        raise ValueError(f"{name} is an array of shape {rate.shape}: expected a number in [0, 1)")
    if isinstance(rate, jax.core.Tracer):
        return rate
    if not 0 <= (value := _float(rate)) < 1:
        shown = repr(rate) if isinstance(rate, str) else rate
        raise ValueError(f"{name} is {shown}: expected a number in [0, 1)")
    return value


def not_negative(name: str, number: Any) -> float:
    """A Python float; raises `ValueError` with the name if it is negative, no number or traced.

    >>> not_negative("eps", -1)
    Traceback (most recent call last):
        ...
    ValueError: eps is -1: expected a number, 0 or more, that is not traced
    """
    if not (value := _float(number)) >= 0:
        raise ValueError(f"{name} is {number!r}: expected a number, 0 or more, that is not traced")
    return value


def _float(number: Any) -> float:
    """A number as a Python float; nan for text, other objects and traced values."""
    try:
        return math.nan if isinstance(number, str) else float(number)
    except (TypeError, ValueError):
        return math.nan


def check_shapes(
    known: Mapping[str, int] | None = None, /, **arrays: Array | None
) -> dict[str, int]:
    """Sizes by letter; raises `ValueError` for the first array that does not fit its name.

    An array has one axis, of size 1 or more, for each letter after the last underscore of its name.
    The same letter means the same size, here and in `known`. None always fits.

    >>> check_shapes(q_BTHK=jnp.ones((2, 5, 3, 8)))
    {'B': 2, 'T': 5, 'H': 3, 'K': 8}
    >>> check_shapes({"B": 2, "T": 5}, targets_BT=jnp.ones((2, 6)))
    Traceback (most recent call last):
        ...
    ValueError: targets_BT has shape (2, 6): expected [B, T] with B = 2, T = 5
    """
    sizes = dict(known or {})
    for name, x in arrays.items():
        if x is None:
            continue
        letters = name.rpartition("_")[2]
        found = dict(zip(letters, x.shape, strict=False))
        if x.ndim != len(letters) or 0 in x.shape or found != found | _of(sizes, letters):
            known_sizes = ", ".join(f"{k} = {n}" for k, n in _of(sizes, letters).items())
            raise ValueError(
                f"{name} has shape {x.shape}: expected [{', '.join(letters)}]"
                + (f" with {known_sizes}" if known_sizes else ", each 1 or more")
            )
        sizes |= found
    return sizes


def _of(sizes: Mapping[str, int], letters: str) -> dict[str, int]:
    return {letter: sizes[letter] for letter in letters if letter in sizes}


def at_least(least: int, **counts: SupportsIndex) -> None:
    """Raise `ValueError` with its name for a count that is no integer or below `least`.

    >>> at_least(1, chunk_tokens=0)
    Traceback (most recent call last):
        ...
    ValueError: chunk_tokens is 0: expected 1 or more
    """
    for name, count in counts.items():
        try:
            fits = index(count) >= least
        except TypeError:
            raise ValueError(f"{name} is {count!r}: expected an integer") from None
        if not fits:
            raise ValueError(f"{name} is {count}: expected {least} or more")


@cache
def check_model(cfg: ModelConfig) -> None:
    """Raise `ValueError` with every mistake in the config of a network.

    >>> check_model(ModelConfig(n_layer=0))
    Traceback (most recent call last):
        ...
    ValueError: model.n_layer must be at least 1, not 0
    """
    problems = [
        problem.message
        for problem in find_problems(Config(model=cfg))
        if all(field.startswith("model.") for field in problem.fields)
    ]
    if problems:
        raise ValueError("; ".join(problems))
