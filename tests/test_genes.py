"""Gene vectors from scGPT checkpoints: symbols, safe loading, hostile files, and the real package."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file

from morphoray import cli, schema
from morphoray.datasets.genes import read_genes
from morphoray.errors import BadFractionError, ConfigError, DataError
from morphoray.perturbations.symbols import Match, match_symbols, read_aliases
from morphoray.perturbations.table import read_vectors
from morphoray.pipelines.conditions import fit_conditions
from morphoray.pipelines.genes import embed_genes
from morphoray.pipelines.run import run_import
from morphoray.pipelines.scgpt_checkpoint import direct_vectors, read_vocabulary
from morphoray.storage import Storage, join
from s3server import LocalS3
from tinyrun import run_of

STORAGE = Storage()
GENES = ("RHOA", "RAC1", "CDC42", "C1orf112", "ABC", "Abc")
WIDTH = 8
Write = Callable[[str, str | bytes], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write_file


def weights(rows: int = len(GENES) + 3, width: int = WIDTH) -> dict[str, torch.Tensor]:
    """A state dict with the names that the real package gives (held by the slow test below)."""
    generator = torch.Generator().manual_seed(0)
    return {
        "encoder.embedding.weight": torch.randn(rows, width, generator=generator),
        "encoder.enc_norm.weight": torch.randn(width, generator=generator),
        "encoder.enc_norm.bias": torch.randn(width, generator=generator),
        "decoder.fc.0.weight": torch.randn(width, width, generator=generator),
    }


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint of six genes as the package writes it: <pad>, <cls> and <eoc> are its last rows."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    tokens = [*GENES, "<pad>", "<cls>", "<eoc>"]
    (folder / "vocab.json").write_text(json.dumps({token: row for row, token in enumerate(tokens)}))
    (folder / "args.json").write_text(json.dumps({"embsize": WIDTH, "nheads": 2}))
    torch.save(weights(), folder / "best_model.pt")
    return folder


def by_hand(row: int) -> np.ndarray:
    """(x - mean) / sqrt(var + 1e-5) * weight + bias in double precision."""
    state = {name: tensor.double().numpy() for name, tensor in weights().items()}
    x = state["encoder.embedding.weight"][row]
    scaled = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
    return scaled * state["encoder.enc_norm.weight"] + state["encoder.enc_norm.bias"]


def quarantined(out: Path) -> dict[str, str]:
    """Reason by gene of the table beside OUT."""
    table = STORAGE.read_table(str(out.with_suffix("")) + ".quarantine.parquet")
    assert table.schema.equals(schema.QUARANTINE)
    return {row["item"]: row["reason"] for row in table.to_pylist()}


# Symbols


def test_symbols_match_exactly_then_by_case_then_by_alias() -> None:
    aliases = {"p21": "RAC1", "rhoa": "CDC42", "lost": "NOWHERE"}
    symbols = ["RHOA", "rhoa", "c1ORF112", "p21", "abc", "ABC", "lost", "RHOZ", "<pad>", "xyz"]
    found = match_symbols(symbols, [*GENES, "<pad>"], aliases)
    assert found[:4] == [
        Match("RHOA", "RHOA", "exact"),
        Match("rhoa", "RHOA", "case"),  # the vocabulary itself before an alias
        Match("c1ORF112", "C1orf112", "case"),
        Match("p21", "RAC1", "alias"),
    ]
    assert found[4] == Match(
        "abc", None, "gene 'abc' differs in case alone from several tokens: ['ABC', 'Abc']"
    )
    assert found[5] == Match("ABC", "ABC", "exact")
    assert [item.token for item in found[6:]] == [None] * 4
    assert found[6].how.startswith("gene 'lost', an alias of 'NOWHERE', is not in the vocabulary")
    assert found[7].how == "gene 'RHOZ' is not in the vocabulary; nearest: RHOA"
    assert found[9].how == "gene 'xyz' is not in the vocabulary; nearest: none"


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("genes.txt", "RHOA\n\n rac1 \nRHOA\n   \nCDC42"),
        ("genes.csv", "gene,note\nRHOA,a\n,b\nrac1,c\nRHOA,d\n ,e\nCDC42,f\n"),
        ("export.csv", "siRNA ID,Gene Symbol\ns1,RHOA;RHOB\ns2,\ns3,rac1\ns4,RHOA\ns5,\ns6,CDC42;X\n"),
    ],
)
def test_gene_lists(name: str, text: str, mark: str, newline: str, write: Write) -> None:
    found = read_genes(write(name, mark + text.replace("\n", newline)), STORAGE)
    assert found.symbols == ("RHOA", "rac1", "CDC42")
    assert (found.empty, found.repeated) == (2, 1)


def test_gene_lists_in_parquet(tmp_path: Path) -> None:
    uri = str(tmp_path / "sites.parquet")
    STORAGE.write_table(uri, pa.table({"site_id": ["a", "b", "c"], "gene": ["RHOA", None, "RHOA"]}))
    assert read_genes(uri, STORAGE).symbols == ("RHOA",)
    STORAGE.write_table(uri, pa.table({"Gene Symbol": ["RHOA;RHOB", "RAC1"]}))
    assert read_genes(uri, STORAGE).symbols == ("RHOA", "RAC1")


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("genes.txt", "", "found no gene symbol in 0 entries"),
        ("genes.txt", " \n\r\n", "found no gene symbol in 2 entries"),
        ("genes.csv", "gene\n", r"no rows below the header \['gene'\]"),
        ("genes.csv", "symbol\nRHOA\n", r"found columns \['symbol'\], expected one of \('gene'"),
        ("genes.csv", "gene,note\nRHOA\n", "row 1: 1 values, expected 2"),
        ("genes.parquet", "gene\nRHOA\n", "expected a Parquet file"),
        ("genes.txt", b"\xff\xfeR\x00", "expected UTF-8 text"),
    ],
)
def test_gene_lists_that_break_their_contract(
    name: str, text: str | bytes, reason: str, write: Write
) -> None:
    with pytest.raises(DataError, match=reason):
        read_genes(write(name, text), STORAGE)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("alias,name\na,B\n", "found columns"),
        ("alias,symbol\na,\n", "row 1: an alias and a symbol expected"),
        ("alias,symbol\na,B\na,C\n", "row 2: alias 'a' stands for 'B' and for 'C'"),
    ],
)
def test_aliases_that_break_their_contract(text: str, reason: str, write: Write) -> None:
    with pytest.raises(DataError, match=reason):
        read_aliases(write("aliases.csv", text), STORAGE)


# The direct reader


def test_vectors_by_hand(checkpoint: Path) -> None:
    vectors = direct_vectors(str(checkpoint), ["CDC42", "RHOA", "CDC42"], STORAGE)
    assert (vectors.dtype, vectors.shape) == (np.float32, (3, WIDTH))
    np.testing.assert_allclose(vectors, [by_hand(2), by_hand(0), by_hand(2)], atol=1e-6)
    assert direct_vectors(str(checkpoint), [], STORAGE).shape == (0, WIDTH)


def test_old_and_safe_formats_give_the_same_vectors(checkpoint: Path) -> None:
    expected = direct_vectors(str(checkpoint), GENES, STORAGE)
    torch.save(weights(), checkpoint / "best_model.pt", _use_new_zipfile_serialization=False)
    np.testing.assert_array_equal(direct_vectors(str(checkpoint), GENES, STORAGE), expected)
    (checkpoint / "best_model.pt").unlink()
    save_file(weights(), checkpoint / "best_model.safetensors")
    np.testing.assert_array_equal(direct_vectors(f"file://{checkpoint}", GENES, STORAGE), expected)


def test_special_tokens_that_the_package_appends(checkpoint: Path) -> None:
    """A vocabulary without them has three rows fewer than the embedding."""
    expected = direct_vectors(str(checkpoint), GENES, STORAGE)
    (checkpoint / "vocab.json").write_text(json.dumps({gene: row for row, gene in enumerate(GENES)}))
    np.testing.assert_array_equal(direct_vectors(str(checkpoint), GENES, STORAGE), expected)


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("kind", ["zip", "old", "bare", "bare, of a protocol that torch never reads"])
def test_a_pickle_with_code_is_refused_and_not_executed(kind: str, checkpoint: Path, tmp_path: Path) -> None:
    proof, path = tmp_path / "executed", checkpoint / "best_model.pt"
    value = weights() | {"hook": Malicious(proof)}
    if kind.startswith("bare"):
        path.write_bytes(pickle.dumps(value["hook"], protocol=2 if kind == "bare" else 4))
    else:
        torch.save(value, path, _use_new_zipfile_serialization=kind == "zip")
    reason = r"refused: it names the code \w+\.system.*none of it was executed"
    with pytest.raises(DataError, match="torch can't read it" if "protocol" in kind else reason):
        direct_vectors(str(checkpoint), ["RHOA"], STORAGE)
    assert not proof.exists()
    call, given = value["hook"].__reduce__()
    call(*given)
    assert proof.exists(), "the planted command would have worked"


def without(name: str) -> Callable[[Path], None]:
    """Drops a tensor."""

    def change(folder: Path) -> None:
        torch.save({key: value for key, value in weights().items() if key != name}, folder / "best_model.pt")

    return change


def saved(value: Any) -> Callable[[Path], None]:
    """Other weights."""
    return lambda folder: torch.save(value, folder / "best_model.pt")


def file_with(name: str, content: str | bytes) -> Callable[[Path], None]:
    """Another file."""
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data) and None


HOSTILE = [
    (without("encoder.embedding.weight"), r"found no \['encoder\.embedding\.weight'\] among 3 tensors"),
    (without("encoder.enc_norm.bias"), r"found no \['encoder\.enc_norm\.bias'\]"),
    (saved({"model_state_dict": weights()}), r"among 1 tensors \(model_state_dict"),
    (saved([torch.zeros(2)]), "expected a state dict, found list"),
    (saved(weights(rows=7)), r"has the shape \(7, 8\), expected \(9, 8\)"),
    (saved(weights(width=4)), r"has the shape \(9, 4\), expected \(9, 8\)"),
    (saved(weights() | {"encoder.enc_norm.bias": torch.zeros(1)}), r"has the shape \(1,\), expected \(8,\)"),
    (saved(weights() | {"encoder.enc_norm.bias": 3}), r"has the shape \(\), expected \(8,\)"),
    (
        saved(weights() | {"encoder.embedding.weight": torch.zeros(9, 8, dtype=torch.long)}),
        r"holds torch\.int64",
    ),
    (file_with("best_model.pt", b""), "torch can't read it"),
    (file_with("best_model.pt", b"<html>404</html>"), "torch can't read it"),
    (file_with("best_model.pt", b"PK\x03\x04" + bytes(100)), "torch can't read it"),
    (file_with("best_model.safetensors", b"\xff" * 64), "expected safetensors"),
    (lambda folder: (folder / "best_model.pt").unlink(), "found neither best_model.pt nor"),
    (lambda folder: (folder / "vocab.json").unlink(), "A scGPT checkpoint is a folder with vocab.json"),
    (file_with("vocab.json", "{"), "expected JSON"),
    (file_with("vocab.json", "[]"), "expected an object from token to number, found list"),
    (file_with("vocab.json", "{}"), "expected an object from token to number"),
    (file_with("vocab.json", '{"RHOA": "0"}'), "token 'RHOA' has '0', expected a whole number"),
    (file_with("vocab.json", '{"RHOA": true}'), "token 'RHOA' has True"),
    (file_with("vocab.json", '{"RHOA": 0, "RAC1": 0}'), "2 tokens have the numbers 0 to 0, expected 0 to 1"),
    (file_with("vocab.json", '{"RHOA": -1}'), "numbers -1 to -1"),
    (file_with("vocab.json", '{"RHOA": 4000000000}'), "numbers 4000000000 to 4000000000"),
    (file_with("args.json", "{}"), "embsize is None"),
    (file_with("args.json", '{"embsize": "8"}'), "embsize is '8'"),
]


@pytest.mark.parametrize(("change", "reason"), HOSTILE)
def test_hostile_checkpoints(change: Callable[[Path], None], reason: str, checkpoint: Path) -> None:
    change(checkpoint)
    with pytest.raises(DataError, match=reason):
        read_vocabulary(str(checkpoint), STORAGE)
        direct_vectors(str(checkpoint), ["RHOA"], STORAGE)


# The command


def test_embed_writes_what_the_table_encoder_reads(
    checkpoint: Path, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    genes = write("genes.txt", "rhoa\np21\nCDC42\nRHOZ\nCDC42\n")
    aliases = write("aliases.csv", "alias,symbol\np21,rac1\n")
    out = tmp_path / "vectors.parquet"
    words = ["genes", "embed", str(checkpoint), genes, str(out), "--aliases", aliases, "--max-unknown", "0.3"]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "3 of 4 have a vector (1 exact, 1 by case, 1 by alias), 1 have none" in said
    assert "by case: rhoa -> RHOA" in said and "by alias: p21 -> RAC1" in said
    assert "gene 'RHOZ' is not in the vocabulary; nearest: RHOA" in said
    assert "0 empty entries, 1 repeated" in said
    ids, vectors = read_vectors(str(out), STORAGE)
    assert ids == ["rhoa", "p21", "CDC42"]
    np.testing.assert_allclose(vectors, [by_hand(0), by_hand(1), by_hand(2)], atol=1e-6)
    table = STORAGE.read_table(str(out))
    assert table["token"].to_pylist() == ["RHOA", "RAC1", "CDC42"]
    schema.check_stamp(table.schema.metadata, None, "OUT")
    assert list(quarantined(out)) == ["RHOZ"]


def test_embed_fails_past_the_share_of_unknown_genes(checkpoint: Path, write: Write, tmp_path: Path) -> None:
    out = tmp_path / "vectors.parquet"
    genes = write("genes.txt", "RHOA\nRHOZ\n")
    with pytest.raises(BadFractionError, match=r"1 of 2 genes have no vector, more than --max-unknown 0\.1"):
        embed_genes(str(checkpoint), genes, str(out))
    assert not out.exists()
    assert list(quarantined(out)) == ["RHOZ"]
    embed_genes(str(checkpoint), write("genes.txt", "RHOA\n"), str(out))
    assert quarantined(out) == {}, "the table beside OUT is never that of an earlier list"
    with pytest.raises(BadFractionError, match="1 of 1"):
        embed_genes(str(checkpoint), write("genes.txt", "RHOZ\n"), str(out), max_unknown=1)


def test_embed_quarantines_vectors_that_are_not_finite(
    checkpoint: Path, write: Write, tmp_path: Path
) -> None:
    state = weights()
    state["encoder.embedding.weight"][1, 3] = float("nan")
    torch.save(state, checkpoint / "best_model.pt")
    out = tmp_path / "vectors.parquet"
    genes = write("genes.txt", "RHOA\nRAC1\n")
    assert embed_genes(str(checkpoint), genes, str(out), max_unknown=0.5).genes == 1
    assert quarantined(out) == {"RAC1": "gene 'RAC1': the checkpoint's vector is not finite"}
    torch.save(
        weights() | {"encoder.enc_norm.weight": torch.full((WIDTH,), float("inf"))},
        checkpoint / "best_model.pt",
    )
    with pytest.raises(BadFractionError, match="2 of 2"):
        embed_genes(str(checkpoint), genes, str(out), max_unknown=0.5)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ({"out": "vectors.csv"}, r"expected a name that ends in \.parquet"),
        ({"max_unknown": 1.5}, "expected a share from 0 to 1"),
        ({"max_unknown": float("nan")}, "expected a share from 0 to 1"),
    ],
)
def test_embed_refuses_what_cannot_be(
    words: dict[str, Any], reason: str, checkpoint: Path, write: Write, tmp_path: Path
) -> None:
    given = {"out": str(tmp_path / "v.parquet")} | words
    with pytest.raises(ConfigError, match=reason):
        embed_genes(str(checkpoint), write("genes.txt", "RHOA\n"), **given)


def test_embed_from_and_to_s3(s3_env: LocalS3, checkpoint: Path, tmp_path: Path) -> None:
    root = f"s3://{s3_env.bucket}/scgpt"
    STORAGE.upload_dir(checkpoint, join(root, "checkpoint"))
    STORAGE.write_text(join(root, "genes.txt"), "RHOA\n")
    out = join(root, "vectors.parquet")
    embed_genes(join(root, "checkpoint"), join(root, "genes.txt"), out)
    np.testing.assert_allclose(read_vectors(out, STORAGE)[1], [by_hand(0)], atol=1e-6)


# From siRNAs to conditions


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """RxRx1's metadata of an untreated well and of two siRNAs; the images are not needed for conditions."""
    lines = ["site_id,well_id,cell_type,dataset,experiment,plate,well,site,well_type,sirna,sirna_id"]
    for well, sirna, kind in (
        ("B02", "EMPTY", "negative_control"),
        ("B03", "s1", "treatment"),
        ("B04", "s2", "positive_control"),
    ):
        name = f"HUVEC-01_1_{well}"
        lines.append(f"{name}_1,{name},HUVEC,train,HUVEC-01,1,{well},1,{kind},{sirna},0")
    (tmp_path / "rxrx1").mkdir()
    (tmp_path / "rxrx1/metadata.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "rxrx1"


def test_rxrx1_conditions_by_gene(checkpoint: Path, tree: Path, write: Write, tmp_path: Path) -> None:
    """Two siRNAs share a gene; the run's SITES are the list of genes, and the control is all ones."""
    sirnas = write("sirnas.csv", "siRNA ID,Gene Symbol\ns1,RAC1;RAC2\ns2,RAC1\n")
    out = tmp_path / "vectors.parquet"
    run_dir = tmp_path / "run"
    dataset = {"name": "rxrx1", "source": str(tree), "gene_table": sirnas, "check_files": False}
    perturbations = {"encoder": "table", "uri": str(out), "key": "gene"}
    config = run_import(run_of({"run_dir": str(run_dir), "dataset": dataset, "perturbations": perturbations}))
    assert embed_genes(str(checkpoint), str(run_dir / "sites" / "sites.parquet"), str(out)).genes == 1
    found = fit_conditions(config)
    assert sorted(found.vectors) == ["EMPTY", "s1", "s2"]
    np.testing.assert_allclose(found.vectors["s1"], by_hand(1), atol=1e-6)
    np.testing.assert_array_equal(found.vectors["s2"], found.vectors["s1"])
    assert (found.vectors["EMPTY"] == 1).all()
    again = found.load().encode([])
    assert again.vectors.shape == (0, WIDTH)


def test_rxrx1_sirna_without_a_gene_has_no_condition(
    checkpoint: Path,
    tree: Path,
    write: Write,
    tmp_path: Path,
) -> None:
    sirnas = write("sirnas.csv", "siRNA ID,Gene Symbol\ns1,RAC1\ns2,\n")
    out = tmp_path / "vectors.parquet"
    embed_genes(str(checkpoint), sirnas, str(out))
    dataset = {"name": "rxrx1", "source": str(tree), "gene_table": sirnas, "check_files": False}
    perturbations = {"encoder": "table", "uri": str(out), "key": "gene", "max_bad_fraction": 0.5}
    values = {"run_dir": str(tmp_path / "run"), "dataset": dataset, "perturbations": perturbations}
    assert sorted(fit_conditions(run_import(run_of(values))).vectors) == ["EMPTY", "s1"]
    rows = STORAGE.read_table(str(tmp_path / "run/quarantine/condition.parquet")).to_pylist()
    assert [(row["item"], row["reason"]) for row in rows] == [
        ("s2", "s2: no gene symbol, by which the table is looked up")
    ]
    with pytest.raises(BadFractionError, match=r"1 of 3 perturbations have no condition vector"):
        fit_conditions(
            run_import(
                run_of(values | {"run_dir": str(tmp_path / "strict")}, "perturbations.max_bad_fraction=0.1")
            )
        )
