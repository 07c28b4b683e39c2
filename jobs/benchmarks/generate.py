"""Images a second of the generation stage beside a bare loop, and beside the original's one image a call.

The stage's steady rate is taken between its first and its last finished part; what comes before, the start of
Ray's workers and the loading of the bundle, is printed apart.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from _common import (
    Rates,
    Spent,
    TimedStage,
    interleave,
    machine,
    print_rates,
    print_start,
    print_target,
    ratio,
    seconds_of,
    simulated_run,
    stage_arguments,
    write_bundle,
)
from torch import Tensor

from morphoray.config import GenerationConfig
from morphoray.diffusion.bundle import Bundle, load_bundle
from morphoray.diffusion.codec import to_uint8
from morphoray.diffusion.samplers import make_sampler
from morphoray.imaging.png import encode_png
from morphoray.pipelines.cluster import connected, use_threads
from morphoray.pipelines.generate import generate_images, known_perturbations

TARGET = 0.95
ORIGINAL_SAMPLER, ORIGINAL_STEPS, ORIGINAL_TOKENS = "ddpm", 50, 77


@dataclass(frozen=True)
class Figures:
    """rates: images/s round by round; start_s: until the first part begins; settings: the product's.

    spent: where the bare loop's seconds go.
    """

    rates: Rates
    start_s: list[float]
    settings: GenerationConfig
    spent: Spent


def measure(
    folder: Path, parts: int, images_per_part: int, repeats: int, original_images: int = 1, **sampling: object
) -> Figures:
    """Make `parts` parts of `images_per_part` images through the stage, in turn with the two other ways.

    One thread each: on a busy machine two threads that wait for each other measure its scheduler.
    """
    size = {"images_per_part": images_per_part, "n": images_per_part * parts, "cpus_per_actor": 1, **sampling}
    config = simulated_run(folder / "run", 8, generation=size)
    settings = config.generation
    path = write_bundle(folder / "bundle", config)
    bundle = load_bundle(path)
    item = known_perturbations(bundle.manifest)[:1]
    use_threads(settings.cpus_per_actor)
    timed, spent = TimedStage(images_per_part), Spent()

    def bare() -> float:
        def work() -> None:
            for start in range(0, images_per_part, settings.batch_size):
                count = min(settings.batch_size, images_per_part - start)
                bare_images(bundle, count, settings.sampler, settings.steps, spent)

        return images_per_part / seconds_of(work)

    def original() -> float:
        return original_images / seconds_of(
            lambda: [
                bare_images(bundle, 1, ORIGINAL_SAMPLER, ORIGINAL_STEPS, Spent(), ORIGINAL_TOKENS)
                for _ in range(original_images)
            ]
        )

    def stage() -> float:
        out = folder / f"images-{len(timed.start_s)}"
        return timed.rate(
            lambda: generate_images(str(path), item, str(out), settings, 0, config.storage),
            out / "parts",
            "*.parquet",
        )

    bare()
    spent.seconds.clear()
    with connected():
        rates = interleave({"bare": bare, "stage": stage, "original": original}, repeats)
    return Figures(rates, timed.start_s, settings, spent)


@torch.inference_mode()
def bare_images(
    bundle: Bundle, count: int, sampler: str, steps: int, spent: Spent, tokens: int = 1
) -> list[bytes]:
    """`count` images in one batch, as PNG: torch's one generator, `tokens` identical condition tokens."""
    with spent("noise and condition"):
        noise = torch.randn(count, *bundle.latent_shape(int(bundle.manifest["resolution"])))
        width = int(bundle.denoiser.projection.vector_width)
        condition = bundle.denoiser.projection(torch.ones(count, width)).repeat(1, tokens, 1)
        scheduler = make_sampler(sampler, bundle.schedule, steps)
    latents: Tensor = noise * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        with spent("denoiser"):
            prediction = bundle.denoiser.unet(latents, timestep, condition, return_dict=False)[0]
        with spent("sampler"):
            latents = scheduler.step(prediction, timestep, latents, return_dict=False)[0]
    with spent("decoder"):
        pixels = to_uint8(bundle.vae.decode(latents / bundle.scaling_factor).sample).numpy()
    with spent("PNG"):
        return [encode_png(image, 1) for image in pixels]


def describe(config: GenerationConfig, resolution: int) -> str:
    """The settings that the figures depend on."""
    return (
        f"{resolution} px, tiny preset, {config.sampler} in {config.steps} steps, batch {config.batch_size}, "
        f"guidance {config.guidance_scale:g}, {config.precision}, {config.cpus_per_actor:g} CPUs an actor"
    )


def main() -> None:
    """Measure and print."""
    arguments = stage_arguments(__doc__, "images", parts=6, per_part=16)
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), arguments.parts, arguments.per_part, arguments.repeats)
    print(f"generate: {describe(figures.settings, 64)}")
    original = f"{ORIGINAL_SAMPLER} in {ORIGINAL_STEPS} steps, {ORIGINAL_TOKENS} tokens"
    print(f"original: one image a call, {original}")
    print_rates(figures.rates, "images/s")
    print_target("stage / bare", ratio(figures.rates, "stage", "bare"), TARGET)
    print(f"  stage / original: {ratio(figures.rates, 'stage', 'original'):.1f}")
    print_start(figures.start_s)
    figures.spent.print("where the bare loop's time goes:")


if __name__ == "__main__":
    main()
