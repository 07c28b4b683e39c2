"""What the main training process writes: metrics, TensorBoard events, sample grids, checkpoints, bundle."""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from morphoray.config import RunConfig
from morphoray.diffusion.bundle import Bundle, save_bundle
from morphoray.diffusion.generate import ImageRequest, SamplerSettings, generate
from morphoray.imaging.png import encode_png, grid
from morphoray.pipelines.background import Background
from morphoray.pipelines.checkpoints import Checkpoints
from morphoray.pipelines.conditions import Conditions
from morphoray.pipelines.layout import layout_of, storage_from
from morphoray.storage import is_remote, join
from morphoray.training.state import TrainingState

WRITE_EVERY_S = 15.0


class Recorder:
    """The hooks of the training loop; on other processes than the main one it does nothing."""

    def __init__(
        self,
        config: RunConfig,
        bundle: Bundle,
        conditions: Conditions,
        checkpoints: Checkpoints,
        background: Background,
        main: bool,
        resumed: int,
    ) -> None:
        self._config, self._bundle, self._conditions = config, bundle, conditions
        self._checkpoints, self._background, self._main = checkpoints, background, main
        self._storage, self._layout = storage_from(config.storage), layout_of(config)
        self._metrics = self._layout.of("metrics.jsonl")
        self._written = time.monotonic()
        self._records: list[dict[str, Any]] = []
        if main:
            self._records = self._earlier(resumed)
            self._events = self._open_events(resumed)

    def _earlier(self, resumed: int) -> list[dict[str, Any]]:
        """Records of the steps before `resumed`: later ones are about to be made again."""
        if not resumed or not self._storage.exists(self._metrics):
            return []
        lines = self._storage.read_text(self._metrics).splitlines()
        return [record for record in map(json.loads, lines) if record["step"] <= resumed]

    def _open_events(self, resumed: int) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        target = self._layout.of("tensorboard")
        self._events_folder = tempfile.mkdtemp() if is_remote(target) else target.removeprefix("file://")
        return SummaryWriter(self._events_folder, purge_step=resumed + 1 if resumed else None)

    def log(self, record: dict[str, Any]) -> None:
        """One line on the screen, one in metrics.jsonl, and TensorBoard's scalars."""
        if not self._main:
            return
        config = self._config.training
        step, left = record["step"], record["seconds_left"]
        filled = 20 * step // config.max_steps
        print(
            f"train [{'#' * filled}{'.' * (20 - filled)}] {step}/{config.max_steps}  "
            f"loss {record['loss']:.4f}  {record['images_per_s']:.1f} images/s  "
            f"{int(left) // 60}:{int(left) % 60:02d} left",
            flush=True,
        )
        self._records.append({key: record[key] for key in ("step", "loss", "learning_rate", "images_per_s")})
        for name in ("loss", "learning_rate", "images_per_s"):
            self._events.add_scalar(f"train/{name}", record[name], step)
        if time.monotonic() - self._written > WRITE_EVERY_S and self._background.check():
            self._background.start(self._records_writer())

    def _records_writer(self) -> Callable[[], None]:
        """What writes the records so far, whatever is added to them meanwhile."""
        text = "".join(json.dumps(record) + "\n" for record in self._records)
        self._events.flush()
        self._written = time.monotonic()

        def write() -> None:
            self._storage.write_text(self._metrics, text)
            if is_remote(self._layout.root):
                self._storage.upload_dir(self._events_folder, self._layout.of("tensorboard"))

        return write

    def save(self, state: TrainingState) -> None:
        """Everything recorded so far and a checkpoint, in the background; waits for the one before."""
        self._background.wait()  # before the copy: at most one is held
        snapshot, write_records = self._checkpoints.snapshot(state), self._records_writer()

        def write() -> None:
            write_records()  # first: a checkpoint that counts has its records
            self._checkpoints.write(snapshot)

        self._background.start(write)

    def check(self) -> None:
        """Raise what a save raised that has ended since."""
        self._background.check()

    def sample(self, state: TrainingState) -> None:
        """A grid of images from the averaged weights: a row a perturbation, to samples/step-….png."""
        names = sorted(self._conditions.vectors)[:4]
        requests = [
            ImageRequest(name, self._conditions.without_context(name), index)
            for name in names
            for index in range(8)
        ]
        settings = SamplerSettings(
            "dpmsolver++", 15, 1.0, self._config.seed, self._config.image.resolution, batch_size=16
        )
        parameters = list(state.model.parameters())
        state.ema.store(parameters)
        state.ema.copy_to(parameters)
        try:
            mapping = self._bundle.mapping
            images = [mapping.render(image) for image in generate(self._bundle, requests, settings)]
        finally:
            state.ema.restore(parameters)
            state.model.train()
        png = encode_png(grid(images, 8), text={"Channels": mapping.legend})
        self._storage.write_bytes(self._layout.of("samples", f"step-{state.step:08d}.png"), png)

    def finish(self, state: TrainingState) -> None:
        """Write the bundle, its manifest last, once the last checkpoint is complete."""
        self._background.wait()
        self._events.close()
        batch = self._config.training.batch_size
        self._bundle.manifest["training"] |= {"steps": state.step, "images_seen": state.step * batch}
        target = self._layout.bundle
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "bundle"
            save_bundle(self._bundle, state.ema_weights(), folder)
            manifest = (folder / "morphoray.json").read_bytes()
            (folder / "morphoray.json").unlink()
            self._storage.upload_dir(folder, target)
        self._storage.write_bytes(join(target, "morphoray.json"), manifest)
