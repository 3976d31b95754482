"""Metrics of edited video, each a torchmetrics `Metric` fed pixels (B, T, 3, H, W) in [0, 1].

Importing this package registers the built-in ones; see `register_metric` for adding one from a plugin.
"""

from ivedit.evaluation.metrics.base import (
    METRICS,
    ClipMetric,
    Reference,
    Unavailable,
    build_metrics,
    measure,
    register_metric,
    skipped_metrics,
)
from ivedit.evaluation.metrics.flow import SourceFlow, source_flow, start_source_flow
from ivedit.evaluation.metrics.gate import GateAUC, token_coverage, weighted_auc
from ivedit.evaluation.metrics.learned import weights_digest
from ivedit.evaluation.metrics.motion import (
    MOVES_OTHERWISE,
    FlickerRatio,
    MotionAgreement,
    MotionRatio,
    SharpnessRatio,
    WarpError,
)
from ivedit.evaluation.metrics.region import EditProgress, EditSuccess, FramePSNR, RegionPSNR, RegionSSIM
from ivedit.evaluation.metrics.vision import Perceptual, RaftWarpError, network_flow

__all__ = [
    "METRICS",
    "MOVES_OTHERWISE",
    "ClipMetric",
    "EditProgress",
    "EditSuccess",
    "FlickerRatio",
    "FramePSNR",
    "GateAUC",
    "MotionAgreement",
    "MotionRatio",
    "Perceptual",
    "RaftWarpError",
    "Reference",
    "RegionPSNR",
    "RegionSSIM",
    "SharpnessRatio",
    "SourceFlow",
    "Unavailable",
    "WarpError",
    "build_metrics",
    "measure",
    "network_flow",
    "register_metric",
    "skipped_metrics",
    "source_flow",
    "start_source_flow",
    "token_coverage",
    "weighted_auc",
    "weights_digest",
]
