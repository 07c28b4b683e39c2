"""Cell type and experiment as conditions: features, what training learns of them, what may be asked for."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from accelerate import Accelerator
from fastapi.testclient import TestClient

from bundles import make_bundle
from morphoray.config import BundleConfig, PerturbationsConfig, RunConfig, ScreenConfig, TrainingConfig
from morphoray.diffusion.bundle import Bundle, new_bundle
from morphoray.diffusion.generate import ImageRequest, SamplerSettings, sample_latents
from morphoray.diffusion.objective import draw_noise, slot_seeds
from morphoray.errors import ConfigError, FingerprintError
from morphoray.imaging.png import encode_png
from morphoray.perturbations.base import CONTEXT_COLUMNS, Encoded, Perturbation, read_perturbations
from morphoray.perturbations.context import NO_CONTEXT, Context, context_state, load_context
from morphoray.pipelines.conditions import Conditions, fit_conditions
from morphoray.pipelines.generate import read_manifest, vectors_for
from morphoray.pipelines.run import run_import
from morphoray.pipelines.screen import find_control
from morphoray.pipelines.serving_app import make_app
from morphoray.pipelines.serving_requests import Catalog, ImagesRequest, Made, ServiceError, Work
from morphoray.pipelines.streamed import BLOCK, EncodeBlock, parts_of, read_item
from morphoray.pipelines.train import manifest_of, training_settings
from morphoray.seeds import fingerprint
from morphoray.storage import Storage
from morphoray.training.consumed import Block, Consumed
from morphoray.training.latents import LatentParts, LatentSet, Span, joined
from morphoray.training.loop import Hooks, make_state, train
from morphoray.training.streamed import Streamed
from tinyrun import make_images, run_of, settings

CELLS = ("HUVEC", "U2OS")
BOTH = Context({"cell_type": CELLS, "experiment": ("b1", "b2", "b3")})
NAMES: list[str | None] = ["U2OS", "HUVEC", None, "RPE"]
BATCHES: list[str | None] = ["b3", None, "b1", "b9"]
FEATURES = [[0, 1, 0, 0, 1], [1, 0, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]]


def test_features_by_hand() -> None:
    hot = BOTH.features({"cell_type": NAMES, "experiment": BATCHES}, 4)
    assert hot.dtype == np.uint8 and hot.tolist() == FEATURES
    assert BOTH.width == 5
    assert NO_CONTEXT.features({}, 3).shape == (3, 0)


def test_levels_are_the_sorted_ones_of_training_and_survive_their_state() -> None:
    sites = pa.table({"cell_type": ["U2OS", None, "HUVEC", "U2OS"], "experiment": ["b", "b", "a", "b"]})
    found = Context.fit(("experiment", "cell_type"), sites)
    assert found.levels == {"experiment": ["a", "b"], "cell_type": ["HUVEC", "U2OS"]}
    stored = json.loads(json.dumps(context_state(found)))
    assert load_context(stored) == found
    assert context_state(Context.fit((), sites)) == {} and load_context({}) == NO_CONTEXT
    with pytest.raises(ConfigError, match="no training site has a cell_type"):
        Context.fit(("cell_type",), sites.slice(1, 1))


def test_a_perturbation_in_a_context_is_its_vector_and_features_or_a_reason() -> None:
    encoded = Encoded(np.full((5, 1), 7, np.float32), [None, None, None, "invalid SMILES", None])
    p = Perturbation("p", "compound")
    items = [replace(p, cell_type="U2OS", experiment="b1"), p, replace(p, experiment="b4"), p]
    items.append(replace(p, cell_type="huvec"))
    result = BOTH.extended(encoded, items)
    assert result.vectors.dtype == np.float32
    assert result.vectors[:2].tolist() == [[7, 0, 1, 1, 0, 0], [7, 0, 0, 0, 0, 0]]
    assert np.isnan(result.vectors[2:]).all()
    assert result.reasons[:2] == [None, None] and result.reasons[3] == "invalid SMILES"
    assert result.reasons[2] == (
        "experiment 'b4': unknown to this bundle, expected one of b1, b2, b3, or none for their mixture"
    )
    assert "cell_type 'huvec': unknown to this bundle, expected one of HUVEC, U2OS" in str(result.reasons[4])
    many = Context({"experiment": [str(number) for number in range(100, 200)]})
    assert "158, 159 and 40 more" in str(many.refusal(items[2]))


def test_a_bundle_without_context_gives_its_encoders_bytes_and_refuses_one() -> None:
    p = Perturbation("p", "compound")
    manifest = {"condition": {"encoder": "constant", "state": {"width": 3}}}
    vectors, reasons = vectors_for(manifest, [p, replace(p, cell_type="U2OS")])
    assert vectors[0].tobytes() == np.ones(3, np.float32).tobytes()
    assert reasons == [
        None,
        "cell_type 'U2OS': this bundle was trained without cell_type as a condition; leave it out",
    ]


def test_hiding_a_context_is_the_samples_own_chance_and_moves_no_other() -> None:
    shape, seeds = (2, 4, 4), slot_seeds(7, 30, range(400))
    plain, hidden = (draw_noise(seeds, shape, 1000, 0.5, share) for share in (0.0, 0.3))
    for name in ("posterior", "noise", "timesteps", "drop"):
        assert torch.equal(getattr(plain, name), getattr(hidden, name))
    assert not plain.hide.any()
    assert 0.2 < hidden.hide.float().mean() < 0.4
    assert 0.2 < hidden.hide[hidden.drop].float().mean() < 0.4  # not the draw that drops the condition
    assert torch.equal(draw_noise(seeds[100:], shape, 1000, 0.5, 0.3).hide, hidden.hide[100:])


def latents(context: torch.Tensor | None) -> LatentSet:
    """Eight samples of one perturbation: their latents are 1 and -1 in turns, without spread."""
    sign = torch.tensor([1.0, -1.0]).repeat(4)
    mean = sign[:, None, None, None].expand(8, 16, 2, 2).half().contiguous()
    zeros = torch.zeros(8, dtype=torch.int64)
    return LatentSet(mean, torch.zeros_like(mean), zeros, torch.ones(1, 1), context=context)


def test_rows_keep_their_context_and_hidden_ones_lose_it() -> None:
    features = torch.from_numpy(np.tile(np.array(FEATURES, np.uint8), (2, 1)))
    rows = joined([latents(features).take(np.array([3, 0])), latents(features).take(np.array([1]))])
    hide = torch.tensor([False, False, True])
    _, conditions = rows.sample(slice(0, 3), torch.zeros(3, 16, 2, 2), 1.0, hide)
    assert conditions.dtype == torch.float32
    assert conditions.tolist() == [[1.0, *FEATURES[3]], [1.0, *FEATURES[0]], [1.0, 0, 0, 0, 0, 0]]


def test_context_of_a_table_and_of_a_stream() -> None:
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((4, 1, 1, 1), np.float16))
    table = pa.table(
        {"perturbation_id": ["p"] * 4, "latent_mean": tensors, "latent_std": tensors}
        | {"cell_type": NAMES, "experiment": BATCHES}
    )
    vectors = {"p": np.ones(1)}
    parts = LatentParts([4, 4], lambda part: table, vectors, BOTH)
    rows = parts.load([Span(0, 1, 4), Span(1, 0, 2)])
    assert rows.context is not None
    assert rows.context.tolist() == [*FEATURES[1:], *FEATURES[:2]]
    told = {"cell_type": NAMES, "experiment": BATCHES}
    value = [np.float16(0).tobytes()] * 4
    block = Block((0, 0), [1, 2, 3, 4], ["p"] * 4, value, value, [], told)
    stream = Streamed(iter([block]), (1, 1, 1), vectors, 4, Consumed(1), lambda bad: None, BOTH)
    streamed = stream.at(0, 3, range(3))
    assert streamed.context is not None and streamed.context.tolist() == FEATURES[:3]


def fresh(codec: Path, width: int) -> Bundle:
    config = BundleConfig(preset="tiny", vae=str(codec))
    return new_bundle(config, 16, width, {"kind": "mlp", "tokens": 1, "hidden": 16}, seed=1)


def trained(bundle: Bundle, data: LatentSet, dropout: float, **values: Any) -> list[float]:
    """Train, and the losses."""
    records: list[dict[str, Any]] = []
    config = TrainingConfig(batch_size=8, learning_rate=2e-3, log_every=1, checkpoint_every=1000, **values)
    hooks = Hooks(records.append, lambda state: None, lambda state: None)
    train(bundle, data, config, 0, 0.0, Accelerator(cpu=True), make_state(bundle, config), hooks, dropout)
    bundle.denoiser.eval()
    return [record["loss"] for record in records]


def test_a_model_learns_its_contexts(codec_folder: Path) -> None:
    bundle = fresh(codec_folder, 3)
    data = latents(torch.tensor([[1, 0], [0, 1]], dtype=torch.uint8).repeat(4, 1))
    data = replace(data, mean=data.mean / bundle.scaling_factor)
    trained(bundle, data, 0.2, max_steps=60)
    asked = ([1, 1, 0], [1, 0, 1], [1, 0, 0])
    requests = [ImageRequest("p", np.array(each, np.float32), i) for each in asked for i in range(8)]
    made = sample_latents(bundle, requests, SamplerSettings("ddim", 10, resolution=16))
    first, second, either = made.mean(dim=(1, 2, 3)).reshape(3, 8)
    print(f"latents of 1, of -1, and of either: {first.mean():.2f}, {second.mean():.2f}, {either.tolist()}")
    assert first.min() > 0.5 and second.max() < -0.5
    assert not torch.equal(either, first) and not torch.equal(either, second)


def test_without_context_the_losses_are_to_the_bit_those_of_the_vectors_alone(codec_folder: Path) -> None:
    empty = latents(torch.zeros(8, 0, dtype=torch.uint8))
    plain = trained(fresh(codec_folder, 1), latents(None), 0.0, max_steps=3)
    assert trained(fresh(codec_folder, 1), empty, 0.1, max_steps=3) == plain


def test_micro_batches_hide_the_same_contexts(codec_folder: Path) -> None:
    data = latents(torch.tensor([[1, 0], [0, 1]], dtype=torch.uint8).repeat(4, 1))
    whole = trained(fresh(codec_folder, 3), data, 0.5, max_steps=3)
    parts = trained(fresh(codec_folder, 3), data, 0.5, max_steps=3, gradient_accumulation=3)
    np.testing.assert_allclose(whole, parts, rtol=1e-4)
    assert whole != trained(fresh(codec_folder, 3), data, 0.0, max_steps=3)


def test_settings_of_runs_without_context_are_those_they_had() -> None:
    config = RunConfig(run_dir="r")
    told = training_settings(config)["perturbations"]
    assert fingerprint(told) == "d714989ad34c9fd9"  # as of the version before there was a context
    off = RunConfig(run_dir="r", perturbations={"context_dropout": 0.5})
    assert training_settings(off)["perturbations"] == told
    on = RunConfig(run_dir="r", perturbations={"context": ["experiment"]})
    assert training_settings(on)["perturbations"] == told | {
        "context": ["experiment"],
        "context_dropout": 0.1,
    }
    with pytest.raises(ValueError, match="context must be distinct columns"):
        PerturbationsConfig(context=("experiment", "experiment"))
    with pytest.raises(ConfigError, match=r"perturbations\.context\.0: Input should be 'cell_type' or"):
        run_of({"run_dir": "r", "perturbations": {"context": ["plate"]}})


def test_a_file_names_contexts_and_an_id_may_have_several(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("perturbation_id,smiles,cell_type,experiment\nx,C,U2OS, \nx,C,,\nx,C,HUVEC,b1\n")
    x = Perturbation("x", "compound", "C")
    wanted = [replace(x, cell_type="U2OS"), x, replace(x, cell_type="HUVEC", experiment="b1")]
    assert read_perturbations(str(file), Storage()) == wanted
    assert [item.identity for item in wanted] == [
        ("x", "cell_type=U2OS"),
        ("x",),
        ("x", "cell_type=HUVEC", "experiment=b1"),
    ]


@pytest.fixture(scope="module")
def compounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained bundle of compounds that knows BOTH's levels."""
    return make_bundle(tmp_path_factory.mktemp("context") / "bundle", context=BOTH)


def test_what_the_endpoint_may_be_asked_for(compounds: Path, tiny_bundle: Path) -> None:
    catalog = Catalog(Storage(), {"with": str(compounds), "without": str(tiny_bundle)})

    def ask(bundle: str, **fields: Any) -> tuple[int, str] | np.ndarray:
        try:
            (work,) = catalog.work(ImagesRequest(bundle=bundle, **fields))
        except ServiceError as error:
            return error.status, error.message
        vector: np.ndarray = work.vector
        return vector

    plain, told = ask("with", smiles="CCO"), ask("with", smiles="CCO", cell_type="U2OS", experiment="b2")
    assert plain[-5:].tolist() == [0, 0, 0, 0, 0] and told[-5:].tolist() == [0, 1, 0, 1, 0]
    assert np.array_equal(plain[:-5], told[:-5]) and np.array_equal(plain[:-5], ask("without", smiles="CCO"))
    (work,) = catalog.work(ImagesRequest(bundle="with", perturbation_id="aspirin", cell_type="HUVEC"))
    assert work.perturbation.identity == ("aspirin", "cell_type=HUVEC")
    status, message = ask("with", perturbation_id="aspirin", cell_type="RPE")
    assert status == 422
    assert message.startswith("bundle 'with': cell_type 'RPE': unknown to this bundle, expected one of HUVEC")
    assert ask("without", perturbation_id="aspirin", experiment="b1")[0] == 422
    assert ask("with", perturbation_id="aspirn", cell_type="HUVEC")[0] == 404
    with pytest.raises(ValueError, match="at least 1 character"):
        ImagesRequest(perturbation_id="x", cell_type="")


def test_the_page_offers_the_contexts_and_the_interface_checks_them(
    compounds: Path, tiny_bundle: Path
) -> None:
    asked: list[Work] = []

    async def make(work: list[Work]) -> list[Made]:
        asked.extend(work)
        return [Made(encode_png(np.zeros((3, 2, 2), np.uint8)), len(work), 0.0, 0.0) for _ in work]

    async def ready() -> bool:
        return True

    catalog = Catalog(Storage(), {"with": str(compounds), "without": str(tiny_bundle)})
    client = TestClient(make_app(catalog, make, ready, None))
    page = client.get("/").text
    assert re.findall(r"const contexts = (\[.*\]);", page) == [json.dumps(list(CONTEXT_COLUMNS))]
    for name in CONTEXT_COLUMNS:
        assert f'id="{name}-label" hidden' in page and f'<select id="{name}">' in page
    told = {item["name"]: item["context"] for item in client.get("/v1/bundles").json()}
    assert told == {"with": {name: list(known) for name, known in BOTH.levels.items()}, "without": {}}
    body = {"bundle": "with", "perturbation_id": "aspirin", "cell_type": "HUVEC", "experiment": "b1"}
    answer = client.post("/v1/images", json=body)
    assert (answer.status_code, answer.json()["cell_type"], answer.json()["experiment"]) == (
        200,
        "HUVEC",
        "b1",
    )
    assert asked[0].perturbation.identity == ("aspirin", "cell_type=HUVEC", "experiment=b1")
    refused = client.post("/v1/images", json=body | {"cell_type": "RPE"})
    assert refused.status_code == 422 and "expected one of HUVEC" in refused.json()["error"]
    assert client.post("/v1/images", json=body | {"bundle": "without"}).status_code == 422
    assert len(asked) == 1


def test_what_a_screen_may_be_asked_for(compounds: Path) -> None:
    manifest = read_manifest(Storage(), str(compounds))
    control = find_control(manifest, ScreenConfig(cell_type="U2OS", experiment="b1"))
    assert (control.cell_type, control.experiment) == ("U2OS", "b1")
    with pytest.raises(ConfigError, match=r"screen\.cell_type 'RPE': unknown to this bundle, .* HUVEC, U2OS"):
        find_control(manifest, ScreenConfig(cell_type="RPE"))


def test_a_run_without_context_says_nothing_of_it(codec_folder: Path, tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")

    def conditions_of(run_dir: Path, **perturbations: Any) -> tuple[Conditions, dict[str, Any]]:
        values = settings(run_dir, images, codec_folder)
        values["perturbations"] |= perturbations
        config = run_import(run_of(values))
        conditions = fit_conditions(config)
        condition: dict[str, Any] = manifest_of(config, conditions)["condition"]
        return conditions, condition

    conditions, condition = conditions_of(tmp_path / "plain")
    assert condition == {"encoder": "constant", "state": {"width": 1}}
    stored = json.loads((tmp_path / "plain" / "conditions" / "conditions.json").read_text())
    assert stored.keys() == {"encoder", "state", "vectors", "width"}
    told = json.loads((tmp_path / "plain" / "conditions" / "settings.json").read_text())["perturbations"]
    assert told == {"encoder": "constant", "max_bad_fraction": 0.1, "width": 1}
    assert conditions.without_context("taxol").tobytes() == conditions.vectors["taxol"].tobytes()
    conditions, condition = conditions_of(tmp_path / "told", context=["experiment"])
    assert condition["context"] == {"experiment": ["p0", "p1"]} and conditions.width == 3
    assert conditions.without_context("taxol").tolist() == [1, 0, 0]
    again, _ = conditions_of(tmp_path / "told", context=["experiment"], context_dropout=0.5)
    assert again.context == conditions.context
    with pytest.raises(FingerprintError, match=r"perturbations\.context: stored"):
        conditions_of(tmp_path / "told")
    with pytest.raises(ConfigError, match="no training site has a cell_type"):
        conditions_of(tmp_path / "none", context=["cell_type"])


def test_a_streams_blocks_tell_the_context_of_their_samples(codec_folder: Path, tmp_path: Path) -> None:
    values = settings(tmp_path / "run", make_images(tmp_path / "images"), codec_folder, mode="stream")
    values["perturbations"]["context"] = ["experiment"]
    text = run_import(run_of(values)).model_dump_json()
    item = read_item({"epoch": 0, "number": 0}, text)
    table = EncodeBlock(text)(pa.Table.from_pylist([item]))
    sites = parts_of(text).of(0, 0)
    assert table.schema.equals(BLOCK)
    assert sorted(table["experiment"].to_pylist()) == sorted(sites["experiment"].to_pylist() * 2)
    assert table["cell_type"].null_count == len(table) == 8
