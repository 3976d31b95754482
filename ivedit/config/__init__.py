"""Configuration: the schema, how it is composed, checked, explained and documented. Imports nothing heavy."""

from ivedit.config.compose import Composed, from_dict, load, to_dict, to_yaml
from ivedit.config.schema import (
    BackboneConfig,
    Config,
    DataConfig,
    EditorConfig,
    EvaluationConfig,
    FlowConfig,
    PretrainConfig,
    SamplingConfig,
    TextConfig,
    TrackingConfig,
    TrainConfig,
)
from ivedit.errors import ConfigError

__all__ = [
    "BackboneConfig",
    "Composed",
    "Config",
    "ConfigError",
    "DataConfig",
    "EditorConfig",
    "EvaluationConfig",
    "FlowConfig",
    "PretrainConfig",
    "SamplingConfig",
    "TextConfig",
    "TrackingConfig",
    "TrainConfig",
    "from_dict",
    "load",
    "to_dict",
    "to_yaml",
]
