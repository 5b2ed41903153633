"""gptjax: GPT-1, GPT-2 and GPT-3-class language models in JAX and Flax.

    import gptjax

    run = gptjax.load_run("runs/quickstart")
    print(run.generate("def ", max_new_tokens=100, temperature=0.8, seed=1))

The names below load what they need when they are first used; importing gptjax loads nothing and
touches no device.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptjax.base.errors import UserError
    from gptjax.config import (
        Config,
        DataConfig,
        MeshConfig,
        ModelConfig,
        OptimConfig,
        SampleConfig,
        TrainConfig,
    )
    from gptjax.config.presets import load_config
    from gptjax.conversion.opening import load_run
    from gptjax.generation.loaded import LoadedRun
    from gptjax.model.gpt import GPT

__version__ = "0.1.0"
__all__ = [
    "GPT",
    "Config",
    "DataConfig",
    "LoadedRun",
    "MeshConfig",
    "ModelConfig",
    "OptimConfig",
    "SampleConfig",
    "TrainConfig",
    "UserError",
    "load_config",
    "load_run",
]

_MODULES = {
    "GPT": "gptjax.model.gpt",
    "LoadedRun": "gptjax.generation.loaded",
    "UserError": "gptjax.base.errors",
    "load_config": "gptjax.config.presets",
    "load_run": "gptjax.conversion.opening",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'gptjax' has no attribute {name!r}")
    return getattr(import_module(_MODULES.get(name, "gptjax.config")), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__doc__", "__file__", "__name__", "__path__", "__version__"])
