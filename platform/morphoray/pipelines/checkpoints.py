"""Training checkpoints in local or S3 storage: written aside, their marker last, pruned after."""

import tempfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from morphoray.errors import StorageError
from morphoray.storage import Storage, is_remote, join
from morphoray.training.state import STATE, Snapshot, TrainingState, load_state, take_snapshot

MARKER = "complete.json"


class Checkpoints:
    """The checkpoints under one URI: step-00000100/ and so on, each complete once its marker is there."""

    def __init__(self, storage: Storage, uri: str, fingerprint: str, keep: int) -> None:
        self._storage, self._uri, self._fingerprint, self._keep = storage, uri, fingerprint, keep

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        markers = self._storage.list_files(self._uri, suffix=MARKER, recursive=True)
        return sorted(int(uri.split("/")[-2].removeprefix("step-")) for uri in markers)

    def snapshot(self, state: TrainingState) -> Snapshot:
        """A copy of the state, for `write`."""
        return take_snapshot(state, self._fingerprint)

    def write(self, snapshot: Snapshot) -> None:
        """Write a state; older ones beyond `keep` go once this one is complete."""
        target = self._at(snapshot.step)
        with tempfile.TemporaryDirectory() as scratch:
            try:
                snapshot.write(Path(scratch))
            except (OSError, SafetensorError) as error:
                raise StorageError(
                    f"{scratch}: the checkpoint of step {snapshot.step} could not be written ({error}). "
                    "Free space there, or set TMPDIR to a larger disk, then run the same command again."
                ) from error
            self._storage.upload_dir(scratch, target)
        self._storage.write_json(join(target, MARKER), {"step": snapshot.step})
        for step in self.steps()[: -self._keep]:
            # The marker goes first, so that a half-deleted checkpoint is never taken for a whole one.
            self._storage.delete(join(self._at(step), MARKER))
            self._storage.delete(self._at(step), recursive=True)

    def save(self, state: TrainingState) -> None:
        """Write the state now."""
        self.write(self.snapshot(state))

    def newest(self) -> int:
        """The step of the newest complete checkpoint, 0 when there is none."""
        return max(self.steps(), default=0)

    def position(self) -> tuple[int, dict[str, Any] | None]:
        """Step of the newest complete checkpoint, and what it keeps of the data's position."""
        step = self.newest()
        told = self._storage.read_json(join(self._at(step), STATE)) if step else {}
        return step, told.get("data")

    def restore(self, state: TrainingState, step: int | None = None) -> None:
        """Load the checkpoint of step `step` (default: the newest) into `state`; 0 leaves it as it is."""
        step = self.newest() if step is None else step
        if not step:
            return
        source = self._at(step)
        if not is_remote(source):
            load_state(state, Path(source.removeprefix("file://")), self._fingerprint)
            return
        with tempfile.TemporaryDirectory() as scratch:
            load_state(state, self._storage.download_dir(source, scratch), self._fingerprint)

    def _at(self, step: int) -> str:
        return join(self._uri, f"step-{step:08d}")
