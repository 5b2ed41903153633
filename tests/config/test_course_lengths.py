"""Pieces of a course that do not fit are refused before the run, and never after it."""

import dataclasses
from typing import Any

import pytest

from gptjax.base.errors import ConfigError
from gptjax.config import Config, to_json
from gptjax.config.courses import schedules
from gptjax.config.validation import config_from_json, find_problems, validate

SHORT = {"train.max_steps": 100, "optim.warmup_steps": 10}


def course(**fields: Any) -> Config:
    """A run of 100 steps, 10 of them a warm-up, with other values; `a__b` stands for `a.b`."""
    config = Config()
    for name, value in {**SHORT, **{k.replace("__", "."): v for k, v in fields.items()}}.items():
        section, field = name.split(".")
        part = dataclasses.replace(getattr(config, section), **{field: value})
        config = dataclasses.replace(config, **{section: part})
    return config


REFUSED = {
    "a warm-up longer than the run": (
        {"optim__warmup_steps": 101}, {"optim.warmup_steps", "train.max_steps"},
    ),
    "one longer than the schedule": (
        {"optim__warmup_steps": 51, "optim__decay_steps": 50},
        {"optim.warmup_steps", "optim.decay_steps"},
    ),
    "one longer than the run, within its schedule": (
        {"optim__warmup_steps": 101, "optim__decay_steps": 200},
        {"optim.warmup_steps", "train.max_steps"},
    ),
    "one longer than what is left after a new start": (
        {"optim__rewarm_steps": (91,)}, {"optim.warmup_steps", "train.max_steps"},
    ),
    "one longer than a schedule between two": (
        {"optim__rewarm_steps": (30, 39)}, {"optim.warmup_steps", "optim.rewarm_steps"},
    ),
    "a new start at the end of the run": (
        {"optim__rewarm_steps": (100,)}, {"optim.rewarm_steps", "train.max_steps"},
    ),
    "a new start at the end of the schedule": (
        {"optim__rewarm_steps": (50,), "optim__decay_steps": 50},
        {"optim.rewarm_steps", "optim.decay_steps"},
    ),
    "new starts that do not increase": (
        {"optim__rewarm_steps": (50, 50)}, {"optim.rewarm_steps"},
    ),
    "a cooldown that begins in the warm-up": (
        {"optim__schedule": "wsd", "optim__cooldown_fraction": 0.91},
        {"optim.warmup_steps", "optim.cooldown_fraction", "train.max_steps"},
    ),
    "a ramp longer than the run": (
        {"train__ramp_from_tokens": 2**18, "train__ramp_steps": 101},
        {"train.ramp_steps", "train.max_steps"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_is_refused_once_and_by_its_fields(what):
    values, fields = REFUSED[what]
    (problem,) = find_problems(course(**values))
    assert set(problem.fields) == fields
    assert "None" not in problem.message


@pytest.mark.parametrize(
    "values",
    [
        {"optim__warmup_steps": 100},
        {"optim__warmup_steps": 50, "optim__decay_steps": 50},
        {"optim__decay_steps": 1000},
        {"optim__rewarm_steps": (10, 90)},
        {"optim__schedule": "wsd", "optim__cooldown_fraction": 0.9},
        {"optim__warmup_steps": 0, "optim__schedule": "wsd", "optim__cooldown_fraction": 1.0},
        {"train__ramp_from_tokens": 2**18, "train__ramp_steps": 100},
    ],
)
def test_what_fits_exactly_is_allowed(values):
    validate(course(**values))


@pytest.mark.parametrize("what", REFUSED)
def test_a_run_that_had_such_a_course_can_still_be_read(what):
    config = course(**REFUSED[what][0])
    assert config_from_json(to_json(config), "config.json") == config
    with pytest.raises(ConfigError):
        validate(config)


def test_a_schedule_ends_where_the_next_begins():
    assert schedules(course().optim, 100) == [(0, 100)]
    optim = course(optim__rewarm_steps=(40, 70), optim__decay_steps=90).optim
    assert schedules(optim, 100) == [(0, 40), (40, 70), (70, 90)]
