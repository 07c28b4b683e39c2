"""Training checkpoints in local or S3 storage: written aside, their marker last, pruned after."""

import shutil
import tempfile
from pathlib import Path

from morphoray.storage import Storage, is_remote, join
from morphoray.training.state import TrainingState, load_state, save_state

MARKER = "complete.json"


class Checkpoints:
    """The checkpoints under one URI: step-00000100/ and so on, each complete once its marker is there."""

    def __init__(self, storage: Storage, uri: str, fingerprint: str, keep: int) -> None:
        self._storage, self._uri, self._fingerprint, self._keep = storage, uri, fingerprint, keep

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        markers = self._storage.list_files(self._uri, suffix=MARKER, recursive=True)
        return sorted(int(uri.split("/")[-2].removeprefix("step-")) for uri in markers)

    def save(self, state: TrainingState) -> None:
        """Write the state; older ones beyond `keep` go once this one is complete."""
        target = self._at(state.step)
        with tempfile.TemporaryDirectory() as scratch:
            save_state(state, Path(scratch), self._fingerprint)
            self._storage.upload_dir(scratch, target)
        self._storage.write_json(join(target, MARKER), {"step": state.step})
        for step in self.steps()[: -self._keep]:
            # The marker goes first, so that a half-deleted checkpoint is never taken for a whole one.
            self._storage.delete(join(self._at(step), MARKER))
            self._storage.delete(self._at(step), recursive=True)

    def restore(self, state: TrainingState) -> int:
        """Load the newest complete checkpoint into `state`; returns its step, 0 when there is none."""
        steps = self.steps()
        if not steps:
            return 0
        source = self._at(steps[-1])
        if not is_remote(source):
            load_state(state, Path(source.removeprefix("file://")), self._fingerprint)
            return steps[-1]
        scratch = tempfile.mkdtemp()
        try:
            load_state(state, self._storage.download_dir(source, scratch), self._fingerprint)
        finally:
            shutil.rmtree(scratch)
        return steps[-1]

    def _at(self, step: int) -> str:
        return join(self._uri, f"step-{step:08d}")
