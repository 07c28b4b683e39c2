"""Gene vectors by the real scGPT package, in an environment of its own (scgpt, torch imported there)."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import ray

from morphoray.errors import DataError, MorphorayError
from morphoray.pipelines.cluster import connected
from morphoray.pipelines.scgpt_checkpoint import (
    ARGUMENTS,
    SPECIAL_TOKENS,
    VOCABULARY,
    WEIGHTS,
    checkpoint_folder,
    load_state,
)
from morphoray.storage import Storage, absolute, join

Vectors = npt.NDArray[np.float32]

# scgpt needs torchtext, which ended with torch 2.3: it can't be imported beside this package's own torch.
PACKAGES = (
    "torch==2.3.1",
    "torchtext==0.18.0",
    "numpy==1.26.4",
    "pandas==2.2.3",
    "scanpy==1.10.4",
    "anndata==0.10.9",
    "datasets==2.21.0",
    "pyarrow==17.0.0",
    "ipython",
    "seaborn",
    "networkx",
    "scib==1.1.7",
    "scgpt==0.2.4",
)
_ARGUMENTS = ("embsize", "nheads", "d_hid", "nlayers", "n_layers_cls", "dropout", "pad_token", "pad_value")


def isolated() -> dict[str, Any]:
    """The Ray runtime environment with the real package; uv's cache serves it the next time."""
    return {"uv": {"packages": list(PACKAGES), "uv_pip_install_options": []}}


def environments() -> Path:
    """Where this machine's part of the connected cluster keeps its uv environments."""
    return Path(ray.nodes()[0]["ObjectStoreSocketName"]).parents[1] / "runtime_resources" / "uv"


def package_vectors(
    checkpoint: str, tokens: Sequence[str], storage: Storage, address: str | None = None
) -> Vectors:
    """(N, d) float32: `model.encoder` of scgpt's own TransformerModel, for tokens of its vocabulary.

    Runs as one Ray task. A cluster that was there keeps the environment (10 GB) for the next call; from a
    local one it is removed. Raises DataError for a checkpoint whose parts don't fit, MorphorayError when
    the environment can't be made.
    """
    if not storage.exists(join(checkpoint, WEIGHTS)):
        raise DataError(f"{join(checkpoint, WEIGHTS)}: missing, and scgpt itself reads no other weights.")
    stays = ray.is_initialized() or (address or os.environ.get("RAY_ADDRESS", "local")) != "local"
    with connected(address):
        folder = environments()
        try:
            return _on_cluster(absolute(checkpoint), list(tokens), storage)
        finally:
            if not stays:
                shutil.rmtree(folder, ignore_errors=True)


def _on_cluster(checkpoint: str, tokens: list[str], storage: Storage) -> Vectors:
    task = ray.remote(num_cpus=1, max_retries=0, runtime_env=isolated())(_embed)
    try:
        flat, width = ray.get(task.remote(checkpoint, tokens, storage))
    except ray.exceptions.RuntimeEnvSetupError as error:
        raise MorphorayError(
            f"the environment of scgpt can't be made: {str(error).strip().splitlines()[-1]}. It needs a "
            "package index that has torch 2.3.1; --engine direct needs none and gives the same vectors."
        ) from error
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, MorphorayError):
            raise error.cause from None
        raise
    return np.frombuffer(flat, "<f4").reshape(len(tokens), width)


def _embed(checkpoint: str, tokens: list[str], storage: Storage) -> tuple[bytes, int]:
    """Vectors as little-endian float32 bytes, which any NumPy reads, and their width."""
    import torch
    from scgpt.model import TransformerModel
    from scgpt.tokenizer import GeneVocab
    from scgpt.utils import load_pretrained

    with checkpoint_folder(checkpoint, storage) as folder:
        vocab = GeneVocab.from_file(folder / VOCABULARY)
        args = json.loads((folder / ARGUMENTS).read_text())
        state = load_state(folder / WEIGHTS, join(checkpoint, WEIGHTS))
    missing = [name for name in _ARGUMENTS if name not in args]
    if missing:
        raise DataError(f"{join(checkpoint, ARGUMENTS)}: found {sorted(args)}, scgpt expects also {missing}")
    for token in SPECIAL_TOKENS:
        if token not in vocab:
            vocab.append_token(token)
    model = TransformerModel(
        ntoken=len(vocab),
        d_model=args["embsize"],
        nhead=args["nheads"],
        d_hid=args["d_hid"],
        nlayers=args["nlayers"],
        nlayers_cls=args["n_layers_cls"],
        vocab=vocab,
        dropout=args["dropout"],
        pad_token=args["pad_token"],
        pad_value=args["pad_value"],
        do_mvc=True,
    )
    # load_pretrained leaves out without a word what has another shape: random vectors would come out.
    for name, tensor in model.encoder.state_dict(prefix="encoder.").items():
        if name not in state or state[name].shape != tensor.shape:
            found = tuple(state[name].shape) if name in state else "nothing"
            raise DataError(f"{checkpoint}: {name} is {found}, scgpt expects {tuple(tensor.shape)}")
    load_pretrained(model, state, verbose=False).eval()
    with torch.no_grad():
        vectors = model.encoder(torch.tensor([vocab[token] for token in tokens]))
    return vectors.numpy().astype("<f4").tobytes(), int(vectors.shape[1])
