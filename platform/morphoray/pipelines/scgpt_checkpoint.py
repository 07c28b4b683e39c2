"""Gene vectors read straight from a scGPT checkpoint folder: its embedding and norm alone (torch, late)."""

import contextlib
import re
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from morphoray.errors import DataError, MissingObjectError
from morphoray.storage import Storage, absolute, is_remote, join

VOCABULARY, ARGUMENTS, WEIGHTS = "vocab.json", "args.json", "best_model.pt"
SAFE_WEIGHTS = "best_model.safetensors"
SPECIAL_TOKENS = ("<pad>", "<cls>", "<eoc>")  # scgpt appends those that a vocabulary lacks
EMBEDDING, SCALE, SHIFT = "encoder.embedding.weight", "encoder.enc_norm.weight", "encoder.enc_norm.bias"
_EPSILON = 1e-5  # of torch.nn.LayerNorm, which scgpt leaves as it is


def read_vocabulary(checkpoint: str, storage: Storage) -> dict[str, int]:
    """Token to row of the embedding. Raises DataError unless the rows are 0 to n - 1, each once."""
    uri = join(checkpoint, VOCABULARY)
    try:
        found = storage.read_json(uri)
    except MissingObjectError:
        raise DataError(
            f"{uri}: missing. A scGPT checkpoint is a folder with {VOCABULARY}, {ARGUMENTS} and {WEIGHTS}."
        ) from None
    if not isinstance(found, dict) or not found:
        raise DataError(f"{uri}: expected an object from token to number, found {type(found).__name__}")
    wrong = next((name for name, row in found.items() if type(row) is not int), None)
    if wrong is not None:
        raise DataError(f"{uri}: token {wrong!r} has {found[wrong]!r}, expected a whole number")
    if sorted(found.values()) != list(range(len(found))):
        raise DataError(
            f"{uri}: {len(found)} tokens have the numbers {min(found.values())} to {max(found.values())}, "
            f"expected 0 to {len(found) - 1}, each once"
        )
    return found


def direct_vectors(checkpoint: str, tokens: Sequence[str], storage: Storage) -> npt.NDArray[np.float32]:
    """(N, d) float32: layer_norm(embedding[token]) as scGPT's `model.encoder` has it, of vocabulary tokens.

    Nothing but tensors is read. Raises DataError for weights that hold more, lack a tensor, or don't fit
    the vocabulary or args.json.
    """
    import torch

    vocabulary = read_vocabulary(checkpoint, storage)
    width = _width(join(checkpoint, ARGUMENTS), storage)
    rows = torch.tensor([vocabulary[token] for token in tokens], dtype=torch.long)
    with checkpoint_folder(checkpoint, storage) as folder:
        state = _tensors(folder, checkpoint)
        _check_shapes(state, len({*vocabulary, *SPECIAL_TOKENS}), width, checkpoint)
        chosen = state[EMBEDDING][rows].float()
        scale, shift = state[SCALE].float(), state[SHIFT].float()
        vectors = torch.nn.functional.layer_norm(chosen, (width,), scale, shift, _EPSILON)
    return np.asarray(vectors.numpy())


@contextlib.contextmanager
def checkpoint_folder(uri: str, storage: Storage) -> Iterator[Path]:
    """The folder on this machine's disk: a copy for the block's time when it lies in object storage."""
    if not is_remote(uri):
        yield Path(absolute(uri))
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield storage.download_dir(uri, scratch)


def _width(uri: str, storage: Storage) -> int:
    found = storage.read_json(uri)
    width = found.get("embsize") if isinstance(found, dict) else None
    if type(width) is not int or width < 1:
        raise DataError(f"{uri}: embsize is {width!r}, expected the length of a gene's vector")
    return width


def _tensors(folder: Path, checkpoint: str) -> dict[str, Any]:
    """The three tensors; those of a .pt stay in the file (memory-mapped) until rows of them are read."""
    safe, path = folder / SAFE_WEIGHTS, folder / WEIGHTS
    wanted = (EMBEDDING, SCALE, SHIFT)
    if safe.is_file():
        state = _from_safetensors(safe, wanted, join(checkpoint, SAFE_WEIGHTS))
    elif path.is_file():
        state = load_state(path, join(checkpoint, WEIGHTS))
    else:
        raise DataError(f"{checkpoint}: found neither {WEIGHTS} nor {SAFE_WEIGHTS}. Name a scGPT checkpoint.")
    missing = [name for name in wanted if name not in state]
    if missing:
        names = ", ".join(sorted(map(str, state))[:6])
        raise DataError(f"{checkpoint}: found no {missing} among {len(state)} tensors ({names}, …)")
    return {name: state[name] for name in wanted}


def _from_safetensors(path: Path, wanted: Sequence[str], uri: str) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) if name in wanted else None for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise DataError(f"{uri}: expected safetensors, but {error}. Copy the checkpoint again.") from error


def load_state(path: Path, uri: str) -> dict[str, Any]:
    """A .pt file's state dict, memory-mapped where its format allows; `uri` names it in errors.

    Raises DataError for a file that holds more than tensors, which is not executed, or that can't be read.
    """
    import torch

    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a broken or hostile file can make the reader raise anything
        raise DataError(f"{uri}: {_refusal(str(error))}") from error
    if not isinstance(found, Mapping):
        raise DataError(f"{uri}: expected a state dict, found {type(found).__name__}")
    return dict(found)


def _refusal(message: str) -> str:
    """What to say of a file that torch would not read, without its advice to read it unsafely."""
    named = re.search(r"(?:GLOBAL|Unsupported class) ([\w.]+)", message)  # of torch 2.13, of 2.3
    if named:
        return (
            f"refused: it names the code {named[1]}, and only tensors are read; none of it was executed. "
            "Take the checkpoint from its publisher, or save its state_dict alone."
        )
    return "expected a state dict of tensors, and torch can't read it as one. Copy the checkpoint again."


def _check_shapes(state: Mapping[str, Any], count: int, width: int, checkpoint: str) -> None:
    for name, expected in ((EMBEDDING, (count, width)), (SCALE, (width,)), (SHIFT, (width,))):
        found = tuple(getattr(state[name], "shape", ()))
        if found != expected:
            raise DataError(
                f"{checkpoint}: {name} has the shape {found}, expected {expected} from {VOCABULARY} (with "
                f"{', '.join(SPECIAL_TOKENS)}) and {ARGUMENTS}. The files are of different checkpoints."
            )
        if not state[name].is_floating_point():
            raise DataError(
                f"{checkpoint}: {name} holds {state[name].dtype}, expected floating-point numbers"
            )
