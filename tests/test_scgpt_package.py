"""The real scgpt package, installed in an environment of its own, beside the direct reader."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from morphoray.errors import DataError
from morphoray.perturbations.table import read_vectors
from morphoray.pipelines.cluster import connected
from morphoray.pipelines.genes import embed_genes
from morphoray.pipelines.scgpt_package import environments, isolated, package_vectors
from morphoray.storage import Storage
from tinyrun import REAL_RAY

pytestmark = [*REAL_RAY, pytest.mark.slow]

STORAGE = Storage()
UNREACHABLE = "failed to fetch|dns error|error sending request|could not connect|connection|timed out"


@pytest.fixture
def cluster() -> Iterator[None]:
    """A local cluster whose 10 GB environment is removed at the end."""
    with connected():
        folder = environments()
        try:
            yield
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def checkpoint_maker() -> Callable[[str], dict[str, Any]]:
    """A function, sent to the environment as code, that saves a small model of the real package there."""

    def make(folder: str) -> dict[str, Any]:
        import json
        from importlib.resources import files
        from pathlib import Path

        import torch
        from scgpt.model import TransformerModel
        from scgpt.tokenizer import GeneVocab

        known = json.loads((files("scgpt") / "tokenizer/default_census_vocab.json").read_text())
        genes = sorted({*sorted(known)[::300][:190], "RHOA", "RAC1", "CDC42", "C1orf112"})
        vocab = GeneVocab(genes, specials=["<pad>", "<cls>", "<eoc>"], special_first=False)
        args = {"embsize": 32, "nheads": 2, "d_hid": 32, "nlayers": 1, "n_layers_cls": 3, "dropout": 0.2}
        torch.manual_seed(0)
        model = TransformerModel(len(vocab), 32, 2, 32, 1, vocab=vocab, pad_value=-2, do_mvc=True)
        for tensor in model.encoder.enc_norm.parameters():
            torch.nn.init.normal_(tensor)
        target = Path(folder)
        target.mkdir(parents=True)
        torch.save(model.state_dict(), target / "best_model.pt")
        (target / "args.json").write_text(json.dumps({**args, "pad_token": "<pad>", "pad_value": -2}))
        vocab.save_json(target / "vocab.json")
        return {"genes": genes, "torch": torch.__version__, "norm": str(model.encoder.enc_norm)}

    return make


@pytest.mark.timeout(1800)
def test_the_real_package_and_the_direct_reader_agree(cluster: None, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    try:
        made = ray.get(ray.remote(runtime_env=isolated())(checkpoint_maker()).remote(str(folder)))
    except ray.exceptions.RuntimeEnvSetupError as error:
        if not re.search(UNREACHABLE, str(error).lower()):
            raise
        pytest.skip(f"scgpt's packages can't be fetched: {str(error).strip().splitlines()[-1]}")
    assert made["torch"].startswith("2.3.1") and not torch.__version__.startswith("2.3")
    assert "eps=1e-05" in made["norm"]
    genes = tmp_path / "genes.txt"
    genes.write_text("\n".join([*made["genes"], "rhoa"]))
    vectors = {}
    for engine in ("direct", "scgpt"):
        out = str(tmp_path / f"{engine}.parquet")
        embed_genes(str(folder), str(genes), out, engine=engine)
        ids, vectors[engine] = read_vectors(out, STORAGE)
        assert ids == [*made["genes"], "rhoa"]
    difference = float(np.abs(vectors["direct"] - vectors["scgpt"]).max())
    print(f"{vectors['direct'].shape}: the two differ by {difference:.3g} at most")
    assert difference <= 1e-6
    assert vectors["direct"].std() > 0.5, "no constant vectors are compared"
    _hostile(folder, tmp_path / "executed")


def _hostile(folder: Path, proof: Path) -> None:
    """What the package itself would skip or execute is refused."""
    state = torch.load(folder / "best_model.pt", weights_only=True)
    torch.save(state | {"encoder.embedding.weight": torch.zeros(9, 32)}, folder / "best_model.pt")
    with pytest.raises(DataError, match=r"embedding\.weight is \(9, 32\), scgpt expects \(19\d, 32\)"):
        package_vectors(str(folder), ["RHOA"], STORAGE)

    class Malicious:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {proof}",)

    torch.save(state | {"hook": Malicious()}, folder / "best_model.pt")
    with pytest.raises(DataError, match=r"refused: it names the code \w+\.system.*none of it was executed"):
        package_vectors(str(folder), ["RHOA"], STORAGE)
    assert not proof.exists()
    (folder / "args.json").write_text('{"embsize": 32}')
    torch.save(state, folder / "best_model.pt")
    with pytest.raises(DataError, match=r"found \['embsize'\], scgpt expects also \['nheads', 'd_hid'"):
        package_vectors(str(folder), ["RHOA"], STORAGE)
