"""The samplers: diffusers' schedulers with one generator an image."""

from collections.abc import Callable
from typing import Any

from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

from morphoray.errors import ConfigError

# Keys of a training schedule that every scheduler understands; the others belong to one class only.
_SHARED = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "prediction_type",
    "timestep_spacing",
    "steps_offset",
)


def _shared(schedule: DDPMScheduler) -> dict[str, Any]:
    return {key: schedule.config[key] for key in _SHARED}


def _ddpm(schedule: DDPMScheduler) -> DDPMScheduler:
    """Ancestral sampling, equation 5 of the paper, on evenly spaced steps."""
    return DDPMScheduler(**_shared(schedule), clip_sample=False)


def _ddim(schedule: DDPMScheduler) -> DDIMScheduler:
    """Deterministic given the first noise (Song et al. 2021, eta 0)."""
    return DDIMScheduler(**_shared(schedule), clip_sample=False, set_alpha_to_one=False)


def _dpmsolver(schedule: DDPMScheduler) -> DPMSolverMultistepScheduler:
    """DPM-Solver++ 2M (Lu et al. 2022): good images in 15 to 25 steps."""
    return DPMSolverMultistepScheduler(**_shared(schedule), algorithm_type="dpmsolver++", solver_order=2)


SAMPLERS: dict[str, Callable[[DDPMScheduler], Any]] = {
    "ddpm": _ddpm,
    "ddim": _ddim,
    "dpmsolver++": _dpmsolver,
}


def make_sampler(name: str, schedule: DDPMScheduler, steps: int) -> Any:
    """The sampler called `name`, its timesteps set; ConfigError lists the known ones."""
    if name not in SAMPLERS:
        raise ConfigError(f"generation.sampler: {name!r} is unknown. Known: {', '.join(sorted(SAMPLERS))}.")
    sampler = SAMPLERS[name](schedule)
    sampler.set_timesteps(steps)
    return sampler
