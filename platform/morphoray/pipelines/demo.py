"""The demo: the main job on simulated cells, with and without the condition, and a report of both."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from morphoray.config import MethodConfig, RunConfig
from morphoray.evaluation.results import CONDITIONAL, UNCONDITIONAL, RunFacts
from morphoray.pipelines.cluster import connected
from morphoray.pipelines.encode import encode
from morphoray.pipelines.evaluate import evaluate
from morphoray.pipelines.layout import layout_of, resolve, storage_from
from morphoray.pipelines.machine import measure
from morphoray.pipelines.run import run_import, save_config
from morphoray.pipelines.shown import losses, run_details
from morphoray.pipelines.train import train
from morphoray.sections import build
from morphoray.storage import Storage

CONFIG = Path(__file__).parent / "demo.yaml"
# Minutes that everything but training takes, on two cores at 80 GFLOP/s: import, encoding, starting Ray's
# workers, generating, features. They shrink with the machine's speed, but for the starting.
FIXED_MINUTES, WORK_MINUTES, SLOW_GFLOPS = 1.5, 3.0, 80.0
# Latents from disk, optimizer, averaging and checkpoints beside the forward and backward passes.
STEP_OVERHEAD = 1.2
LEAST_STEPS, MOST_STEPS = 100, 6000


@dataclass(frozen=True)
class Plan:
    """What the demo decided from the machine's speed, kept so that a resume is exact."""

    minutes: float
    images_per_s: float
    gflops: float
    threads: int
    steps: int


def make_plan(config: RunConfig, minutes: float) -> Plan:
    """Training steps of each of the two models that make the whole take about `minutes`."""
    batch = config.training.batch_size
    speed = measure(config.bundle, config.image.resolution, batch)
    other = FIXED_MINUTES + WORK_MINUTES * min(2.0, SLOW_GFLOPS / speed.gflops)
    seconds = max(0.0, minutes - other) * 60 / 2
    steps = int(seconds * speed.images_per_s / STEP_OVERHEAD / batch)
    steps = min(MOST_STEPS, max(LEAST_STEPS, steps // 10 * 10))
    return Plan(minutes, speed.images_per_s, speed.gflops, speed.threads, steps)


def _load_plan(config: RunConfig, storage: Storage, uri: str, minutes: float) -> Plan:
    if storage.exists(uri):
        plan = Plan(**storage.read_json(uri))
        print(f"demo: going on with the plan in {uri}: {plan.steps} steps a model", flush=True)
        return plan
    print("demo: measuring this machine for a few seconds", flush=True)
    plan = make_plan(config, minutes)
    storage.write_json(uri, asdict(plan))
    print(
        f"demo: {plan.threads} threads, {plan.gflops:.0f} GFLOP/s, {plan.images_per_s:.0f} images/s: "
        f"{plan.steps} steps of {config.training.batch_size} images for each of two models, "
        f"about {minutes:g} minutes in all",
        flush=True,
    )
    return plan


def demo_config(root: str, method: str) -> RunConfig:
    """The run of one of the two models: both share `root`/data, one knows the perturbation."""
    values: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    values |= {"run_dir": f"{root}/{method}", "data_dir": f"{root}/data"}
    if method == UNCONDITIONAL:
        values["perturbations"] = {"encoder": "constant", "projection": "mlp"}
    return resolve(build(RunConfig, values, "demo"))


def run_demo(out: str, minutes: float, address: str | None = None) -> str:
    """Train both models, generate, compare and write the report; returns its URI. The same call resumes."""
    started = time.monotonic()
    configs = {method: demo_config(out, method) for method in (CONDITIONAL, UNCONDITIONAL)}
    first = configs[CONDITIONAL]
    storage = storage_from(first.storage)
    root = layout_of(first).data.rsplit("/", 1)[0]
    plan = _load_plan(first, storage, f"{root}/plan.json", minutes)
    update = {
        "max_steps": plan.steps,
        "warmup_steps": min(50, plan.steps // 10),
        "cpus_per_worker": plan.threads,
    }
    configs = {
        method: config.model_copy(update={"training": config.training.model_copy(update=update)})
        for method, config in configs.items()
    }
    first = configs[CONDITIONAL]
    with connected(address):
        print("demo 1/4: drawing and importing simulated fields", flush=True)
        run_import(first)
        print("demo 2/4: encoding", flush=True)
        encode(first)
        for method, config in configs.items():
            print(f"demo 3/4: the {method} model", flush=True)
            save_config(config)
            train(config)
        print("demo 4/4: generating, measuring distances and writing the report", flush=True)
        spent = _spent(storage, f"{root}/spent.json", time.monotonic() - started)
        report = _report(configs, plan, spent, root)
    print(f"demo: {report}", flush=True)
    return report


def _spent(storage: Storage, uri: str, seconds: float) -> float:
    """Seconds of all calls together, so that a resumed demo doesn't claim to have been quick."""
    total = seconds + (float(storage.read_json(uri)) if storage.exists(uri) else 0.0)
    storage.write_json(uri, total)
    return total


def _report(configs: dict[str, RunConfig], plan: Plan, seconds: float, root: str) -> str:
    first = configs[CONDITIONAL]
    other = MethodConfig(run=layout_of(configs[UNCONDITIONAL]).of("config.yaml"))
    update = {"methods": {UNCONDITIONAL: other}, "out": f"{root}/report"}
    first = first.model_copy(update={"evaluation": first.evaluation.model_copy(update=update)})
    batch = first.training.batch_size
    facts = RunFacts(
        steps=plan.steps,
        images_seen=plan.steps * batch,
        seconds=seconds,
        machine_gflops=plan.gflops,
        outlook=_outlook(plan, batch, losses(first)),
        details=run_details(first),
    )
    statement = (
        "All images called real here are simulated: cells drawn by morphoray's own simulator, "
        "whose phenotypes are a known function of each compound. They say nothing about these drugs. Both "
        "models start from the package's denoiser, which learnt from simulated crops of random phenotypes."
    )
    title = "MorphoDiff on simulated Cell Painting fields"
    return evaluate(first, facts, title, statement)


def _outlook(plan: Plan, batch: int, curve: list[tuple[int, float]]) -> str:
    """What the time bought; how the loss still changed only where that is more than its noise."""
    quarters = [
        np.array([loss for step, loss in curve if plan.steps * q < 4 * step <= plan.steps * (q + 1)])
        for q in (2, 3)
    ]
    text = (
        f"Each model saw {plan.steps * batch:,} images in {plan.steps} steps, as many as fit into "
        f"{plan.minutes:g} minutes on this machine. The time above is that of importing, encoding and both "
        "trainings, before images were generated and measured."
    )
    if all(len(losses) > 1 for losses in quarters):
        before, after = (float(losses.mean()) for losses in quarters)
        error = float(np.sqrt(sum(losses.var(ddof=1) / len(losses) for losses in quarters)))
        if abs(after - before) > 2 * error:
            text += (
                " From the third to the last quarter of training the conditional model's loss went from "
                f"{before:.3f} to {after:.3f} (standard error of the change {error:.3f})."
            )
    return f"{text} For longer training: DEMO_MINUTES=60 make demo, in a new folder."
