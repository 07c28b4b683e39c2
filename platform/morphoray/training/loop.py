"""The training loop: plain torch and accelerate, the same on one process or many."""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import nn

from morphoray.config import TrainingConfig
from morphoray.diffusion.bundle import Bundle
from morphoray.diffusion.objective import draw_noise, loss_weights, slot_seeds, target, weighted_mse
from morphoray.errors import DataError
from morphoray.training.latents import Latents
from morphoray.training.state import TrainingState


@dataclass(frozen=True)
class Hooks:
    """What the loop tells its caller; each gets what it needs and returns nothing.

    log: one record of metrics, every log_every steps and at every checkpoint, on every process.
    save: the state, at checkpoint steps and at the last, on the main process only.
    sample: the state, at sample steps, on the main process only.
    check: called at every step's end on the main process; raises what went wrong beside the loop.
    """

    log: Callable[[dict[str, Any]], None]
    save: Callable[[TrainingState], None]
    sample: Callable[[TrainingState], None]
    check: Callable[[], None] = lambda: None


def share(total: range, count: int, number: int) -> range:
    """The `number`-th of `count` stretches of `total`, whose lengths differ by one at most."""
    return total[number * len(total) // count : (number + 1) * len(total) // count]


def learning_rate(config: TrainingConfig, step: int) -> float:
    """The rate of step `step` (from 0): linear warm-up, then constant or a half cosine down to 0."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    done = (step - config.warmup_steps) / max(1, config.max_steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def make_accelerator(config: TrainingConfig) -> Accelerator:
    """accelerate's hold on this process: its device, its peers and the precision of the forward pass."""
    precision = {"fp32": "no"}.get(config.precision, config.precision)
    return Accelerator(cpu=not config.use_gpu, mixed_precision=precision)


def make_state(bundle: Bundle, config: TrainingConfig) -> TrainingState:
    """A fresh state at step 0 around the bundle's denoiser."""
    model: nn.Module = bundle.denoiser
    if config.gradient_checkpointing:
        bundle.denoiser.unet.enable_gradient_checkpointing()
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=config.learning_rate,
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=True,
    )
    # With the warm-up an average over few steps isn't made of the random start: (1 + t) / (10 + t).
    ema = EMAModel(
        model.parameters(),
        decay=config.ema_decay,
        use_ema_warmup=True,
        inv_gamma=1.0,
        power=0.75,
        foreach=True,
    )
    return TrainingState(model, ema, optimizer)


def train(
    bundle: Bundle,
    data: Latents,
    config: TrainingConfig,
    seed: int,
    dropout: float,
    accelerator: Accelerator,
    state: TrainingState,
    hooks: Hooks,
    context_dropout: float = 0.0,
) -> None:
    """Train from state.step to config.max_steps.

    dropout, context_dropout: shares of samples that see the null condition, and their perturbation alone.
    Every process draws its own slots of each global batch, so the numbers don't depend on how many there
    are; a batch that doesn't divide by their number is cut into stretches that differ by one.
    Raises DataError when the loss is not finite, with the step to look at.
    """
    model, optimizer = accelerator.prepare(state.model, state.optimizer)
    state.ema.to(accelerator.device)
    state.scaler = accelerator.scaler
    schedule, factor = bundle.schedule, bundle.scaling_factor
    num_timesteps = int(schedule.config.num_train_timesteps)
    ordered = data.ordered(seed)
    processes, accumulation = accelerator.num_processes, config.gradient_accumulation
    slots = share(range(config.batch_size), processes, accelerator.process_index)
    cuts = [share(range(len(slots)), accumulation, number) for number in range(accumulation)]
    parts = [slice(cut.start, cut.stop) for cut in cuts]
    forward = torch.compile(model) if config.compile else model
    model.train()
    started, since, losses = time.perf_counter(), state.step, []
    while state.step < config.max_steps:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, state.step)
        chosen = ordered.at(state.step, config.batch_size, slots)
        seeds = chosen.seeds or slot_seeds(seed, state.step, slots)
        noise = draw_noise(seeds, data.shape, num_timesteps, dropout, context_dropout)
        step_loss = torch.zeros((), device=accelerator.device)
        for part in parts:
            tensors = (
                *chosen.sample(part, noise.posterior[part], factor, noise.hide[part]),
                *(noise.noise[part], noise.timesteps[part], noise.drop[part]),
            )
            latents, vectors, epsilon, timesteps, drop = (tensor.to(accelerator.device) for tensor in tensors)
            # Processes' gradients are averaged: weighed so, every slot counts 1 / batch_size however it lies.
            weight = len(latents) * processes / config.batch_size
            noisy = schedule.add_noise(latents, epsilon, timesteps)
            wanted = target(schedule, latents, epsilon, timesteps)
            weights = loss_weights(schedule, timesteps, config.min_snr_gamma)
            with nullcontext() if part is parts[-1] else accelerator.no_sync(model):
                with accelerator.autocast():
                    prediction = forward(noisy, timesteps, vectors, drop)
                loss = weighted_mse(prediction, wanted, weights) * weight
                accelerator.backward(loss)
            step_loss += loss.detach()
        if config.max_grad_norm is not None:
            accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        state.ema.step(model.parameters())
        state.step += 1
        losses.append(step_loss)
        finished = state.step == config.max_steps
        checkpoint = state.step % config.checkpoint_every == 0 or finished
        # A record at every checkpoint too: a resumed run then logs the same means as one that wasn't killed.
        if state.step % config.log_every == 0 or checkpoint:
            mean = accelerator.reduce(torch.stack(losses).mean(), "mean").item()
            if not math.isfinite(mean):
                raise DataError(
                    f"the loss at step {state.step} is {mean}. The last checkpoint is untouched: lower "
                    "training.learning_rate, or use precision: bf16 or fp32."
                )
            seconds = time.perf_counter() - started
            hooks.log(
                {
                    "step": state.step,
                    "loss": mean,
                    "learning_rate": learning_rate(config, state.step - 1),
                    "images_per_s": (state.step - since) * config.batch_size / seconds,
                    "seconds_left": (config.max_steps - state.step) * seconds / (state.step - since),
                }
            )
            losses = []
        if checkpoint:
            state.data = ordered.position()
        if accelerator.is_main_process:
            if checkpoint:
                hooks.save(state)
            if config.sample_every and (state.step % config.sample_every == 0 or finished):
                hooks.sample(state)
            hooks.check()
