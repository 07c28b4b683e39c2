"""Which channel is which: mappings by name, list and JSON, and what is shown of any number of channels."""

import json
from typing import Any

import numpy as np
import pytest

from morphoray.config import RunConfig
from morphoray.datasets import find_dataset
from morphoray.errors import ConfigError, DataError
from morphoray.imaging.channels import (
    CELL_PAINTING_CHANNELS,
    MAPPINGS,
    ChannelMapping,
    bundle_mapping,
    default_colours,
    find_mapping,
    takes,
)
from morphoray.pipelines.codecs import codec_fingerprint, image_channels
from morphoray.pipelines.layout import mapping_of, resolve
from morphoray.sections import build

ROHBAN = ("DNA", "ER", "RNA", "AGP", "Mito")
SIX = np.arange(6, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 3), np.uint8) * 10


def rxrx1(wanted: Any) -> ChannelMapping:
    return find_mapping(wanted, CELL_PAINTING_CHANNELS, "rxrx1_rgb")


@pytest.mark.parametrize(
    ("name", "channels", "expected"),
    [
        ("bbbc021_rgb", ("dapi", "tubulin", "actin"), (30, 20, 10)),  # R actin, G tubulin, B DAPI
        ("bbbc021_rgb", ("nuclei", "tubulin", "actin"), (30, 20, 10)),
        ("rohban_rgb", ROHBAN, (30, 50, 10)),  # R RNA, G Mito, B DNA
        ("rgb", ("red", "green", "blue"), (10, 20, 30)),
    ],
)
def test_the_papers_mappings_to_rgb(name: str, channels: tuple[str, ...], expected: tuple[int, ...]) -> None:
    mapping = find_mapping(name, channels, "")
    raw = np.arange(1, len(channels) + 1, dtype=np.uint8)[:, None, None] * np.full((1, 2, 2), 10, np.uint8)
    image = mapping.apply(raw)
    assert tuple(image[:, 0, 0]) == expected
    np.testing.assert_array_equal(mapping.render(image), image)


@pytest.mark.parametrize(
    ("wanted", "outputs", "levels"),
    [
        (["rna", "mito", "nuclei"], ("rna", "mito", "nuclei"), (30, 40, 0)),
        (("DNA", "Mitochondria"), ("nuclei", "mito"), (0, 40)),
        (["actin"], ("actin",), (20,)),
        ("identity", CELL_PAINTING_CHANNELS, (0, 10, 20, 30, 40, 50)),
    ],
)
def test_selections_come_in_the_order_asked_for(
    wanted: Any, outputs: tuple[str, ...], levels: tuple[int, ...]
) -> None:
    mapping = rxrx1(wanted)
    assert mapping.outputs == outputs
    assert tuple(mapping.apply(SIX)[:, 0, 0]) == levels


def test_no_mapping_named_is_the_datasets_own_where_it_fits() -> None:
    assert rxrx1(None) == MAPPINGS["rxrx1_rgb"]
    assert find_mapping(None, CELL_PAINTING_CHANNELS[:4], "rxrx1_rgb").name == "identity"


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ("rgb2", "'rgb2' is unknown; known: rxrx1_rgb, .*identity, or a list of channels out of nuclei, er"),
        ("bbbc021_rgb", "takes the channels dapi, tubulin, actin, the dataset has nuclei"),
        (["er", "tubulin"], r"found \['er', 'tubulin'\], expected one or more of the channels nuclei"),
        (["er", "ER"], "each at most once"),
        ([], "one or more of the channels"),
        ({"name": "x"}, "image.mapping.inputs: missing"),
        ({"name": "x", "inputs": ["a"], "outputs": ["a"]}, "takes the channels a, the dataset has"),
        ({"name": "x", "inputs": ["a"], "outputs": ["b"]}, "expected some of the inputs"),
        ({"name": "x", "inputs": ["a"], "outputs": ["a"], "colour": 1}, "unknown key"),
    ],
)
def test_a_mapping_that_does_not_fit_is_refused(wanted: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        rxrx1(wanted)


@pytest.mark.parametrize("wanted", [*(["rxrx1_rgb", "rxrx1_channels"]), "identity", ["mito", "er"], ["rna"]])
def test_a_mapping_survives_json(wanted: Any) -> None:
    mapping = rxrx1(wanted)
    text = json.dumps(mapping.model_dump(mode="json"))
    again = bundle_mapping({"mapping": json.loads(text)})
    assert again == mapping
    assert rxrx1(json.loads(text)) == mapping  # as image.mapping, written out
    raw = np.random.default_rng(0).integers(0, 256, (6, 8, 9), dtype=np.uint8)
    np.testing.assert_array_equal(again.apply(raw), mapping.apply(raw))
    np.testing.assert_array_equal(again.render(again.apply(raw)), mapping.render(mapping.apply(raw)))


def test_bundles_of_earlier_versions_have_the_mappings_name_alone() -> None:
    assert bundle_mapping({"mapping": "rxrx1_rgb", "channels": ["nuclei"]}) == MAPPINGS["rxrx1_rgb"]
    assert bundle_mapping({}) == MAPPINGS["rgb"]  # a folder of the original project


@pytest.mark.parametrize(
    "stored",
    [
        "cell_paint",
        5,
        [],
        None,
        {},
        {"name": "x", "inputs": [], "outputs": []},
        {"name": "x", "inputs": ["a", "a"], "outputs": ["a"]},
        {"name": "x", "inputs": ["a", ""], "outputs": ["a"]},
        {"name": "x", "inputs": ["a"], "outputs": ["b"]},
        {"name": "x", "inputs": ["a"] * 65, "outputs": ["a"]},
        {"name": "x", "inputs": ["a"], "outputs": ["a"], "surprise": 1},
        {"name": "x", "inputs": ["a"], "outputs": ["b"], "colours": [{"colour": [1, 2]}]},
        {"name": "x", "inputs": ["a"], "outputs": ["b"], "colours": [{"colour": [256]}]},
        {"name": "x", "inputs": ["a"], "outputs": ["b"], "colours": [{"colour": [1], "levels": [9, 9]}]},
        {"name": "x", "inputs": ["a"], "outputs": ["b"], "colours": []},
        {"name": "x", "inputs": ["a"], "outputs": ["a"], "shown": [{"colour": [1]}]},
    ],
)
def test_a_manifest_with_nonsense_is_a_data_error(stored: Any) -> None:
    with pytest.raises(DataError, match=r"morphoray\.json: mapping"):
        bundle_mapping({"mapping": stored})


def test_six_channels_are_shown_as_rxrx1s_rgb() -> None:
    raw = np.random.default_rng(0).integers(0, 256, (6, 16, 16), dtype=np.uint8)
    identity = rxrx1("identity")
    np.testing.assert_array_equal(identity.render(identity.apply(raw)), MAPPINGS["rxrx1_rgb"].apply(raw))


def test_stretched_channels_by_hand() -> None:
    raw = np.array([51, 107, 32, 191, 200, 0], np.uint8).reshape(6, 1, 1)
    image = MAPPINGS["rxrx1_channels"].apply(raw)
    assert image[:, 0, 0].tolist() == [255, 255, 127, 255, 255, 0]


def test_one_channel_is_shown_in_grey_and_two_in_their_colours() -> None:
    one, two = find_mapping(["mito"], ROHBAN, ""), find_mapping(["dna", "rna"], ROHBAN, "")
    np.testing.assert_array_equal(one.render(np.full((1, 2, 2), 7, np.uint8))[:, 0, 0], [7, 7, 7])
    image = np.array([255, 0], np.uint8)[:, None, None]
    assert two.render(image)[:, 0, 0].tolist() == [19, 0, 249]
    assert two.legend == "DNA #1300f9, RNA #2dfffc"
    assert one.legend == "Mito in grey"
    assert find_mapping("rohban_rgb", ROHBAN, "").legend == "rna in red, mito in green, dna in blue"
    assert MAPPINGS["rgb"].legend == "red, green, blue"
    with pytest.raises(DataError, match="gives 2 channels"):
        two.render(np.zeros((5, 2, 2), np.uint8))


def test_every_channel_has_a_colour_of_its_own() -> None:
    shown = [item.colour for item in default_colours(["dna", "brightfield", "er", "lamp1"])]
    assert len(set(shown)) == 4


def run_config(**sections: Any) -> RunConfig:
    return build(RunConfig, {"run_dir": "/tmp/x", **sections}, "test")


@pytest.mark.parametrize(
    ("channels", "mapping", "outputs"),
    [
        (6, None, ("red", "green", "blue")),
        (5, None, ("dna", "er", "rna", "agp", "mito")),
        (3, ["dna"], ("dna",)),
        (6, "identity", CELL_PAINTING_CHANNELS),
    ],
)
def test_a_run_knows_its_channels(channels: int, mapping: Any, outputs: tuple[str, ...]) -> None:
    config = run_config(dataset={"name": "simulated", "channels": channels}, image={"mapping": mapping})
    resolved = resolve(config)
    assert mapping_of(resolved).outputs == mapping_of(config).outputs == outputs
    assert image_channels(resolved) == len(outputs)
    assert resolve(resolved) == resolved


def test_the_simulators_layouts_have_a_mapping_each() -> None:
    config = run_config(dataset={"name": "simulated", "layout": "bbbc021"})
    assert resolve(config).image.mapping == mapping_of(config).name == "bbbc021_rgb"
    assert mapping_of(run_config(dataset={"name": "simulated"})).name == "rxrx1_rgb"


def test_the_importers_name_the_files_that_they_read() -> None:
    dataset = find_dataset("rxrx1")
    for count in (3, 6, 9):
        names = dataset.channel_names(dataset.options(channels=count))
        assert len(names) == count and names[:3] == CELL_PAINTING_CHANNELS[:3]
    assert takes(MAPPINGS[dataset.mapping], dataset.channel_names(dataset.options()))


def test_a_codec_of_other_channels_is_refused_with_what_to_do() -> None:
    config = run_config(dataset={"name": "simulated", "channels": 5}, bundle={"preset": "tiny"})
    with pytest.raises(
        ConfigError, match=r"has 3 image channels, image\.mapping gives 5 \(dna, er, .*codec"
    ) as caught:
        codec_fingerprint(config)
    assert "--set codec.image_channels=5" in str(caught.value)
    fresh = run_config(dataset={"name": "simulated", "channels": 5}, bundle={"preset": "sd"})
    assert codec_fingerprint(fresh) == "fresh:sd:0:5"
    assert codec_fingerprint(run_config(bundle={"preset": "sd"})) == "fresh:sd:0"  # as earlier runs stored it
