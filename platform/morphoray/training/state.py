"""The full state of a training run, as safetensors and JSON in a folder."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from morphoray.errors import DataError, FingerprintError

STATE = "state.json"


@dataclass
class TrainingState:
    """What a step reads and changes.

    Every random number is a function of (seed, step, sample), so the step is the whole data position and
    no generator has a state of its own; `data` is the position of samples that come in no promised order.
    """

    model: nn.Module
    ema: EMAModel
    optimizer: torch.optim.Optimizer
    scaler: Any = None  # torch's GradScaler in fp16
    step: int = 0
    data: dict[str, Any] | None = None

    def ema_weights(self) -> dict[str, Tensor]:
        """The averaged weights by the model's parameter names; buffers as they are."""
        names = [name for name, _ in self.model.named_parameters()]
        averaged = dict(zip(names, self.ema.shadow_params, strict=True))
        return {name: averaged.get(name, value) for name, value in self.model.state_dict().items()}


@dataclass(frozen=True)
class Snapshot:
    """The full state as it was at one step, on the CPU: training may go on while it is written."""

    step: int
    tensors: dict[str, dict[str, Tensor]]  # by file name; the optimizer's moments go by parameter number
    told: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Write safetensors and state.json into `folder`, which is made."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, tensors in self.tensors.items():
            save_file(tensors, folder / name)
        (folder / STATE).write_text(json.dumps(self.told, indent=2))


def take_snapshot(state: TrainingState, fingerprint: str) -> Snapshot:
    """A copy of the state, marked as made by the settings `fingerprint`; takes its size in host memory."""
    moments = {
        f"{number}.{name}": value
        for number, values in state.optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }
    files = {
        "model.safetensors": state.model.state_dict(),
        "ema.safetensors": {str(number): value for number, value in enumerate(state.ema.shadow_params)},
        "optimizer.safetensors": moments,
    }
    told = {
        "step": state.step,
        "fingerprint": fingerprint,
        "ema_steps": state.ema.optimization_step,
        "scaler": state.scaler.state_dict() if state.scaler is not None else None,
        "data": state.data,
        "torch": torch.__version__,
    }
    copies = {
        file: {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}
        for file, tensors in files.items()
    }
    return Snapshot(state.step, copies, told)


def load_state(state: TrainingState, folder: Path, fingerprint: str) -> None:
    """Continue from `folder`: fills `state` in place.

    Raises FingerprintError when other settings made it, DataError when a file is missing.
    """
    missing = [
        name
        for name in (STATE, "model.safetensors", "ema.safetensors", "optimizer.safetensors")
        if not (folder / name).is_file()
    ]
    if missing:
        raise DataError(
            f"checkpoint {folder} lacks {', '.join(missing)}. Delete it to go on from an earlier one."
        )
    told = json.loads((folder / STATE).read_text())
    if told["fingerprint"] != fingerprint:
        raise FingerprintError(
            f"checkpoint {folder} was made by settings {told['fingerprint']}, this run's are {fingerprint}. "
            "Restore the configuration that lies in run_dir/config.yaml, or use another run_dir."
        )
    state.model.load_state_dict(load_file(folder / "model.safetensors"))
    shadow = load_file(folder / "ema.safetensors")
    with torch.no_grad():
        for number, parameter in enumerate(state.ema.shadow_params):
            parameter.copy_(shadow[str(number)])
    state.ema.optimization_step = told["ema_steps"]
    values: dict[int, dict[str, Tensor]] = {}
    for key, tensor in load_file(folder / "optimizer.safetensors").items():
        number_text, name = key.split(".", 1)
        values.setdefault(int(number_text), {})[name] = tensor
    whole = state.optimizer.state_dict()
    state.optimizer.load_state_dict({"state": values, "param_groups": whole["param_groups"]})
    if state.scaler is not None and told["scaler"] is not None:
        state.scaler.load_state_dict(told["scaler"])
    state.step, state.data = int(told["step"]), told.get("data")
