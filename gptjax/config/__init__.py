"""The definition of a run: a `Config` of frozen dataclasses. Read without jax."""

from gptjax.config.schema import (
    ClassifyConfig,
    Config,
    DataConfig,
    InstructConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    SampleConfig,
    TrainConfig,
    to_json,
)

__all__ = [
    "ClassifyConfig",
    "Config",
    "DataConfig",
    "InstructConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimConfig",
    "SampleConfig",
    "TrainConfig",
    "to_json",
]
