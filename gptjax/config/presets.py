"""Find and run the config files: one Python file a run, each with `get_config() -> Config`.

A bare name means a file shipped in `configs/` (beside the package in a checkout, inside it in an
installed wheel); anything with a slash or ending in .py is a path.
"""

import re
import runpy
from os import PathLike, fspath
from pathlib import Path

from gptjax.base.errors import ConfigError, did_you_mean
from gptjax.config.schema import Config
from gptjax.config.validation import validate

_PACKAGE = Path(__file__).parent.parent


def presets_dir() -> Path:
    """The directory of shipped configs, in a checkout or in an installed wheel."""
    checkout = _PACKAGE.parent / "configs"
    return checkout if (_PACKAGE.parent / "pyproject.toml").exists() else _PACKAGE / "configs"


def preset_names() -> list[str]:
    """Names of all shipped configs, sorted."""
    return sorted(p.stem for p in presets_dir().glob("*.py"))


def find_preset(name_or_path: str | PathLike[str]) -> Path:
    """Turn a name or path into a config file; raises `ConfigError` with a did-you-mean."""
    name_or_path = fspath(name_or_path)
    if name_or_path.endswith(".py") or "/" in name_or_path:
        path = Path(name_or_path)
        if path.is_file():
            return path
        raise ConfigError(
            [f"no config file {name_or_path}: give a path to a Python file with get_config()"]
        )
    names = preset_names()
    if name_or_path in names:
        return presets_dir() / f"{name_or_path}.py"
    raise ConfigError(
        [
            f"unknown config {name_or_path!r}{did_you_mean(name_or_path, names)}: choose one of "
            f"{', '.join(names)}, or give the path of a .py file"
        ]
    )


def load_config(name_or_path: str | PathLike[str]) -> Config:
    """Run a config file and return its checked `Config`; raises `ConfigError` naming the file."""
    path = find_preset(name_or_path)
    try:
        namespace = runpy.run_path(str(path))
        if "get_config" not in namespace:
            raise ConfigError([f"{path} has no get_config: define get_config() -> Config"])
        config = namespace["get_config"]()
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError([f"{path}: {_explain(error)}"]) from error
    if not isinstance(config, Config):
        raise ConfigError(
            [
                f"{path}: get_config() must return a gptjax.config.Config, "
                f"not {type(config).__name__}"
            ]
        )
    try:
        validate(config)
    except ConfigError as error:
        raise ConfigError([f"{path}: {p}" for p in error.problems]) from error
    return config


def _explain(error: Exception) -> str:
    """Describe an error; add a did-you-mean if a config file names an unknown field."""
    import gptjax.config

    text = f"{type(error).__name__}: {error}"
    match = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    section = getattr(gptjax.config, match[1], None) if match else None
    if match and section is not None:
        text = f"{match[1]} has no field {match[2]!r}"
        text += did_you_mean(match[2], section.__dataclass_fields__)
    return text
