"""Flow matching as pure functions of tensors: noise schedule, training draws, loss and sampler.

Nothing here knows a backbone, an editor, a configuration or a trainer, so every function is tested against a
closed form. Notation as in docs/method.md: ``x_sigma = (1 - sigma) x0 + sigma noise``, ``v = noise - x0``.
"""

from ivedit.flow.draws import clip_seeds, draw_noise, even_draws, mix_seed, stratified, training_draws
from ivedit.flow.sampling import build_scheduler, denoise, guided
from ivedit.flow.schedule import (
    change_weight,
    interpolate,
    predict_x0,
    sample_sigma,
    shift_sigma,
    unshift_sigma,
    velocity_loss,
    velocity_target,
)

__all__ = [
    "build_scheduler",
    "change_weight",
    "clip_seeds",
    "denoise",
    "draw_noise",
    "even_draws",
    "guided",
    "interpolate",
    "mix_seed",
    "predict_x0",
    "sample_sigma",
    "shift_sigma",
    "stratified",
    "training_draws",
    "unshift_sigma",
    "velocity_loss",
    "velocity_target",
]
