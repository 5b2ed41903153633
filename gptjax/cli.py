"""The command line of every verb: `--config NAME|PATH`, typed overrides, one kind of error message.

tyro turns the dataclasses into flags and help, but reports only the first mistake. So on a bad
command line each flag is tried on its own, and the config is checked with all valid flags.
"""

import contextlib
import dataclasses
import gc
import io
import os
import sys
import typing
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import tyro

from gptjax.base.errors import ConfigError, StorageError, UserError, did_you_mean
from gptjax.config import Config, DataConfig
from gptjax.config.field_types import type_name
from gptjax.config.origins import Origins, comes_with_model
from gptjax.config.presets import load_config, preset_names
from gptjax.config.validation import find_problems

T = TypeVar("T")
C = TypeVar("C", bound="ConfigCommand")


@dataclass(frozen=True)
class ConfigCommand(Config):
    """A verb that takes a config; the fields of the config are its flags."""

    config: str = ""
    """Name of a file in configs/, or the path of one."""

    @property
    def run(self) -> Config:
        """The config alone, without the verb's own flags."""
        return Config(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Config)})

    @property
    def begun(self) -> Path | None:
        """The directory of a run that may have begun; its own shape is final."""
        return None


def main(verb: Callable[[Sequence[str]], int | None]) -> typing.NoReturn:
    """Run a verb and exit with its code; a `UserError` is one message on standard error."""
    for stream in (sys.stdout, sys.stderr):  # a character that it cannot show must not end a run
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        code = verb(sys.argv[1:]) or 0
        if sys.stdout is not None:  # None if a shell has closed it
            sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # the reader of our output has gone, as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 141
    except OSError as error:
        if (known := StorageError.of(error)) is None:
            raise
        print(f"error: {known}", file=sys.stderr)
        code = known.exit_code
    gc.freeze()  # else the interpreter looks through jax's millions of objects on its way out
    sys.exit(code)


def parse(command: type[T], argv: Sequence[str], prog: str, default: T | None = None) -> T:
    """Parse flags into `command`; raises `ConfigError` with every problem, exits 0 on --help."""
    known: dict[str, Any] = {} if default is None else {"default": default}
    if "-h" in argv or "--help" in argv:
        return tyro.cli(command, args=["--help"], prog=prog, **known)
    try:
        return _quietly(command, argv, known)
    except SystemExit:
        problems = _diagnose(command, argv, known)[0]
        raise ConfigError(problems or [f"cannot read: {' '.join(argv)}; see --help"]) from None


def parse_config(command: type[C], argv: Sequence[str], prog: str, required: bool = True) -> C:
    """Parse `--config` and its overrides; the result's `run` is checked.

    Another `--data.path` or `--data.mixture` drops the section `data`, the vocabulary and the
    prompt of the config file, since they describe the file's own data. Typed flags stay. With
    `train.init_from` shape and tokenizer are that model's.
    """
    problems: list[str] = []
    name, preset = _flag(argv, "--config"), None
    if name is None:
        if required and not ("-h" in argv or "--help" in argv):
            problems.append(f"--config is missing: choose one of {', '.join(preset_names())}")
    else:
        try:
            preset = load_config(name)
        except ConfigError as error:
            problems += error.problems
    base = Config() if preset is None else preset
    good = argv
    sections = {f.name: getattr(base, f.name) for f in dataclasses.fields(Config)}
    other_path = _flag(argv, "--data.path") not in (None, base.data.path)
    mixture = _words(argv, "--data.mixture")
    if mixture and _flag(argv, "--data.path") is not None:
        problems.append("--data.path and --data.mixture exclude each other: leave one out")
    if other_path or mixture not in ((), base.data.mixture):
        data = base.data
        sections["data"] = DataConfig(path=data.path, document_mask=data.document_mask)
        sections["model"] = dataclasses.replace(base.model, n_vocab=None)
        sections["sample"] = dataclasses.replace(base.sample, prompt="")
    default = command(**sections, config=name or "")
    try:
        parsed = parse(command, argv, prog, default)
    except ConfigError:
        found, good = _diagnose(command, argv, {"default": default})
        problems += found
        parsed = _quietly(command, good, {"default": default})
    origins, unknown = origins_of(parsed, good), False
    if required and parsed.train.init_from is not None:
        try:
            run = _fitted(parsed, parsed.train.init_from, origins.typed)
            parts = {f.name: getattr(run, f.name) for f in dataclasses.fields(run)}
            parsed = dataclasses.replace(parsed, **parts)
            origins = origins_of(parsed, good)
        except UserError as error:
            problems += error.problems if isinstance(error, ConfigError) else [str(error)]
            unknown = True
    # a rule about a shape that is not known says nothing, and
    # without the preset, a rule can be checked only if all of its fields were typed
    problems += [
        origins.explain(problem.message)
        for problem in find_problems(parsed.run)
        if origins.typed.issuperset(problem.fields)
        or (preset is not None and not (unknown and any(map(comes_with_model, problem.fields))))
    ]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return parsed


def _fitted(command: ConfigCommand, init_from: str, typed: Collection[str]) -> Config:
    """The config with the shape of a model: that of `begun` if it has a checkpoint.

    A run that resumes needs the model that it began with no more, and that may be gone.
    """
    # NumPy comes with them, and other command lines start without it
    from gptjax.conversion.fitting import fitted
    from gptjax.conversion.shapes import read_source
    from gptjax.runs.directory import RunDir

    has_begun = command.begun is not None and RunDir(command.begun).has_checkpoint
    return fitted(command.run, read_source(str(command.begun) if has_begun else init_from), typed)


def _quietly(command: type[T], argv: Sequence[str], known: dict[str, Any]) -> T:
    """Let tyro parse without its own error boxes; raises SystemExit if it cannot."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        return tyro.cli(command, args=argv, console_outputs=False, **known)


def _flag(argv: Sequence[str], flag: str) -> str | None:
    """The last value given to `flag`, in either spelling: `--flag value` or `--flag=value`."""
    value = None
    for word, following in zip(argv, [*argv[1:], ""], strict=False):
        if word == flag:
            value = following
        elif word.startswith(flag + "="):
            value = word.split("=", 1)[1]
    return value


def _words(argv: Sequence[str], flag: str) -> tuple[str, ...]:
    """All values last given to a `flag` that takes several."""
    given = [[*g[0].split("=", 1)[1:], *g[1:]] for g in _groups(argv) if g[0].split("=")[0] == flag]
    return tuple(given[-1]) if given else ()


def joined_values(argv: Sequence[str], flag: str) -> list[str]:
    """The command line with all values of a `flag` together, however often it is given.

    >>> joined_values(["--stop", "a", "--seed", "1", "--stop=b", "c"], "--stop")
    ['--seed', '1', '--stop', 'a', 'b', 'c']
    """
    own, others = [], []
    for group in _groups(argv):
        if group[0].split("=", 1)[0] == flag:
            own += [*group[0].split("=", 1)[1:], *group[1:]]
        else:
            others += group
    return [*others, flag, *own] if own else list(argv)


def origins_of(command: ConfigCommand, argv: Sequence[str]) -> Origins:
    """Where the values of a parsed command line come from."""
    words = [word.split("=", 1)[0][2:].replace("-", "_") for word in argv if word.startswith("--")]
    switches = {word.replace(".no_", ".") for word in words}  # a switch turned off is its field
    return Origins(command.run, frozenset({*words, *switches}), command.config or None)


def _diagnose(
    command: type, argv: Sequence[str], known: dict[str, Any]
) -> tuple[list[str], list[str]]:
    """Try each flag on its own; returns every problem, and the valid words."""
    flags = dict(_flags(command))
    problems: list[str] = []
    good: list[str] = []
    for group in _groups(argv):
        flag = group[0].split("=", 1)[0]
        name = flag.replace("_", "-")
        given = " ".join([*group[0].split("=", 1)[1:], *group[1:]]) or "nothing"
        if not flag.startswith("--"):
            problems.append(f"unexpected argument {flag!r}: options begin with --")
        elif name not in flags:
            problems.append(f"unknown option {flag}{did_you_mean(name.lower(), flags)}")
        else:
            try:
                _quietly(command, group, known)
                good += group
            except SystemExit:
                problems.append(f"{flag} {_expectation(flags[name], flag)}, not {given}")
    return problems, good


def _expectation(expected: Any, flag: str) -> str:
    """The values of a flag; switches take none."""
    if expected is not bool:
        return f"must be {type_name(expected)}"
    section, _, name = flag.removeprefix("--").rpartition(".")
    prefix = f"--{section}." if section else "--"
    on = name.removeprefix("no-")
    return f"is a switch: write {prefix}{on} or {prefix}no-{on} and no value"


def _groups(argv: Sequence[str]) -> Iterator[list[str]]:
    """Split a command line before every flag."""
    group: list[str] = []
    for word in argv:
        if word.startswith("--") and group:
            yield group
            group = []
        group.append(word)
    if group:
        yield group


def _flags(section: Any, prefix: str = "--") -> Iterator[tuple[str, Any]]:
    """Every flag of a dataclass with its type, `--no-` forms of switches included."""
    for name, expected in typing.get_type_hints(section).items():
        word = name.rstrip("_").replace("_", "-")  # from_, because from is a word of Python's
        if dataclasses.is_dataclass(expected):
            yield from _flags(expected, f"{prefix}{word}.")
        else:
            yield prefix + word, expected
            if expected is bool:
                yield f"{prefix}no-{word}", expected
