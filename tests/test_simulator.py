"""The simulator: its images show what its truth says, and its tree reads back as RxRx1 does."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
from scipy.ndimage import gaussian_filter, label

from morphoray.datasets import find_dataset, simulated
from morphoray.datasets.reading import read_raw
from morphoray.datasets.simulator import effects, layout, library, plan
from morphoray.datasets.simulator.fields import LAYOUTS, draw_fields, field_truth
from morphoray.datasets.simulator.phenotype import (
    PARAMETERS,
    STAINS,
    BatchEffect,
    Phenotype,
    random_batch,
    random_phenotype,
)
from morphoray.errors import ConfigError, DataError, FingerprintError
from morphoray.imaging.channels import MAPPINGS
from morphoray.seeds import numpy_generator
from morphoray.storage import Storage

STORAGE = Storage()
CALM = Phenotype(debris=0, condensed=0, fragmented=0, multinucleated=0)


def draw(phenotype, n=4, batch=None, **options):
    """`n` fields of one phenotype, one key each."""
    options = {"size": 128, "nucleus_diameter_px": 18.0, **options}
    keys = [("test", i) for i in range(n)]
    return draw_fields([phenotype] * n, [batch or BatchEffect()] * n, keys=keys, **options)


def change(**values):
    return dataclasses.replace(CALM, **values)


def nuclei(image):
    """Number of nuclei and their mean area in px^2, by a threshold on the DNA channel."""
    dna = gaussian_filter(image[0].astype(float), 0.7)
    mask = dna > (np.percentile(dna, 20) + np.percentile(dna, 99.5)) / 2.6
    _, count = label(mask)
    return count, mask.sum() / max(count, 1)


@pytest.fixture
def small():
    """Options of a tree that takes a second: 3 perturbations x 2 experiments x 2 sites."""
    return simulated.SimulatedOptions(
        perturbations=("lovastatin", "simvastatin"),
        experiments=2,
        wells_per_perturbation=1,
        sites_per_well=2,
        size=64,
    )


def test_a_field_is_a_function_of_its_own_key():
    batch = random_batch(numpy_generator("batch"))
    one = draw_fields([CALM], [batch], 64, keys=[("a", 1)])
    three = draw_fields([Phenotype(), CALM, CALM], [batch] * 3, 64, keys=[("z",), ("a", 1), ("a", 2)])
    assert np.array_equal(one.images[0], three.images[1])
    assert one.truth[0] == three.truth[1]
    assert not np.array_equal(three.images[1], three.images[2])
    assert field_truth(CALM, batch, 64, ("a", 1)) == one.truth[0]


@pytest.mark.parametrize("channels", sorted(LAYOUTS))
@pytest.mark.parametrize("bit_depth", [8, 16])
def test_channels_and_bit_depth(channels, bit_depth):
    images = draw(CALM, 1, channels=channels, bit_depth=bit_depth).images
    assert images.shape == (1, channels, 128, 128)
    assert images.dtype == (np.uint8 if bit_depth == 8 else np.uint16)
    full = 255 if bit_depth == 8 else 65535
    for plane in images[0]:
        assert 0.02 * full < np.percentile(plane, 99.5) < full  # neither dark nor saturated
    if bit_depth == 16:
        eight = draw(CALM, 1, channels=channels).images
        assert np.abs(images / 257.0 - eight).max() <= 0.51


def test_sixteen_bits_are_used():
    assert len(np.unique(draw(CALM, 1, bit_depth=16).images)) > 2000


@pytest.mark.parametrize(
    ("options", "words"),
    [({"size": 100}, "multiple of 8"), ({"channels": 4}, "channels is 4"), ({"bit_depth": 12}, "bit_depth")],
)
def test_settings_that_cannot_be(options, words):
    with pytest.raises(ValueError, match=words):
        draw(CALM, 1, **options)


def test_the_priors_cover_every_parameter_and_can_all_be_drawn():
    drawn = [random_phenotype(numpy_generator("prior", i)) for i in range(400)]
    for name, parameter in PARAMETERS.items():
        values = [getattr(phenotype, name) for phenotype in drawn]
        # The rare kinds of cell are scaled down, so their prior may reach below the effects' range.
        assert min(values) >= 0 and max(values) <= parameter.high + 1e-9, name
        assert max(values) - min(values) > 0.6 * (parameter.high - parameter.low), name
    batches = [random_batch(numpy_generator("prior-batch", i), 2.0) for i in range(12)]
    images = draw_fields(drawn[:12], batches, 64, keys=[(i,) for i in range(12)]).images
    assert all(plane.max() > plane.min() for image in images for plane in image)


@pytest.mark.parametrize("diameter", [10.0, 18.0, 32.0])
def test_extremes_of_every_parameter_can_be_drawn(diameter):
    low = Phenotype(**{name: parameter.low for name, parameter in PARAMETERS.items()})
    high = Phenotype(**{name: parameter.high for name, parameter in PARAMETERS.items()})
    for phenotype in (low, high):
        for channels in (3, 6):
            draw(phenotype, 3, channels=channels, nucleus_diameter_px=diameter)


def test_counted_nuclei_agree_with_the_truth():
    counted, true = [], []
    for cell_count in (0.2, 0.35, 0.5, 0.65, 0.8):
        fields = draw(change(cell_count=cell_count), 3, size=256)
        counted += [nuclei(image)[0] for image in fields.images]
        true += [truth.nucleus_count for truth in fields.truth]
    # The threshold also sees nuclei that the border cuts, and takes touching ones for one.
    assert np.corrcoef(counted, true)[0, 1] > 0.95
    assert 0.85 < sum(counted) / sum(true) < 1.25


def test_cell_count_rises_with_its_parameter():
    means = []
    for cell_count in (0.3, 0.7, 1.2):
        fields = draw(change(cell_count=cell_count), 8)
        means.append(
            (np.mean([t.cell_count for t in fields.truth]), np.mean([nuclei(i)[0] for i in fields.images]))
        )
    assert means == sorted(means)
    assert means[2][1] > 2 * means[0][1]


def test_measured_nuclear_area_follows_its_parameter():
    truths, measured = [], []
    for area in (0.6, 1.0, 2.0):
        fields = draw(change(nuclear_area=area, cell_count=0.35), 8)
        truths.append(np.mean([truth.mean_nuclear_area_px for truth in fields.truth]))
        measured.append(np.mean([nuclei(image)[1] for image in fields.images]))
    assert truths[1] == pytest.approx(math.pi * 9**2, rel=0.1)
    assert np.array(truths) / truths[1] == pytest.approx([0.6, 1.0, 2.0], rel=0.1)
    assert measured == sorted(measured)
    assert measured[2] / measured[0] > 2


@pytest.mark.parametrize("stain", ["dna", "er", "actin", "rna", "mito", "golgi"])
def test_a_stain_brightens_its_own_channel_only(stain):
    channel = [parts[0][0] for _, parts in LAYOUTS[6]].index(stain)
    plain = draw(CALM, 3).images.astype(float).mean((0, 2, 3))
    bright = draw(change(**{f"{stain}_intensity": 1.5}), 3).images.astype(float).mean((0, 2, 3))
    gained = draw(CALM, 3, BatchEffect(stain_gain=tuple(1.5 if s == stain else 1.0 for s in STAINS)))
    ratio = bright / plain
    assert 1.25 < ratio[channel] < 1.55
    assert np.delete(ratio, channel) == pytest.approx(1, abs=0.02)
    assert gained.images.astype(float).mean((0, 2, 3))[channel] == pytest.approx(bright[channel], rel=0.05)


def test_multinucleate_condensed_and_fragmented_fractions_are_realised():
    fields = draw(Phenotype(multinucleated=0.5, condensed=0.2, fragmented=0.1), 40, size=64)
    cells = sum(truth.cell_count for truth in fields.truth)
    assert sum(t.condensed_count for t in fields.truth) / cells == pytest.approx(0.2, abs=0.06)
    assert sum(t.fragmented_count for t in fields.truth) / cells == pytest.approx(0.1, abs=0.05)
    assert sum(t.multinucleated_count for t in fields.truth) / cells == pytest.approx(0.35, abs=0.08)


def test_blur_haze_and_light_do_what_they_say():
    sharp = draw(CALM, 2, BatchEffect(blur_px=0.6, haze=0.1)).images.astype(float)
    soft = draw(CALM, 2, BatchEffect(blur_px=1.6, haze=0.1)).images.astype(float)
    assert np.abs(np.diff(soft, axis=-1)).mean() < 0.8 * np.abs(np.diff(sharp, axis=-1)).mean()
    even = draw(CALM, 6, BatchEffect(illumination=0)).images.astype(float)
    uneven = draw(CALM, 6, BatchEffect(illumination=0.4)).images.astype(float)
    ratio = uneven.sum((0, 1)) / even.sum((0, 1))
    assert ratio[:8, :8].mean() == pytest.approx(0.62, abs=0.04)
    assert ratio[60:68, 60:68].mean() == pytest.approx(1, abs=0.02)


def test_an_effect_rises_with_the_dose():
    doses = [0.0, 0.3, 1.0, 3.0, 10.0, 100.0]
    drawn = effects.compound_phenotypes([library.COMPOUNDS["ciprofloxacin"].smiles] * 6, doses)
    assert drawn[0] == Phenotype()
    areas, counts = [p.nuclear_area for p in drawn], [p.cell_count for p in drawn]
    assert areas == sorted(areas) and areas[-1] > 1.8
    assert counts == sorted(counts, reverse=True) and counts[-1] < 0.6
    measured = [
        np.mean([nuclei(image)[1] for image in draw(p, 8).images]) for p in (drawn[0], drawn[2], drawn[5])
    ]
    assert measured == sorted(measured)


def test_analogs_share_their_mechanism_and_strangers_do_nothing():
    names = [
        name for name in library.COMPOUNDS if name != "pravastatin"
    ]  # half a statin, in these descriptors
    vectors = effects.compound_vectors([library.COMPOUNDS[name].smiles for name in names])
    shares = effects.mechanism_shares(vectors, "compound")
    for name, row in zip(names, shares, strict=True):
        expected = effects.FAMILY_MECHANISM[library.COMPOUNDS[name].family]
        assert effects.MECHANISM_NAMES[int(row.argmax())] == expected
        assert row.max() > 0.8, name
    far = effects.mechanism_shares(np.full((1, len(effects.DESCRIPTORS)), 6.0), "compound")
    assert far.sum() < 1e-6
    inactive = effects.compound_phenotypes([library.COMPOUNDS["caffeine"].smiles], [100.0])[0]
    assert dataclasses.asdict(inactive) == pytest.approx(dataclasses.asdict(Phenotype()), rel=0.02, abs=0.003)


def test_effects_are_smooth_in_the_descriptors():
    vectors = effects.compound_vectors([library.COMPOUNDS[n].smiles for n in ("diazepam", "ciprofloxacin")])
    steps = np.linspace(0, 1, 200)[:, None]
    path = vectors[0] * (1 - steps) + vectors[1] * steps
    drawn = effects.phenotypes(path, np.full(200, 10.0), "compound")
    condensed = np.array([phenotype.condensed for phenotype in drawn])
    assert condensed[0] > 0.4 > 0.1 > condensed[-1]
    assert np.abs(np.diff(condensed)).max() < 0.03


def test_genes_follow_their_pathways():
    for pathway, genes in library.PATHWAYS.items():
        vectors = np.stack([effects.gene_table()[gene] for gene in genes])
        shares = effects.mechanism_shares(vectors, "gene")
        index = effects.MECHANISM_NAMES.index(effects.FAMILY_MECHANISM[pathway])
        assert (shares[:, index] > 0.85).all(), pathway
    with pytest.raises(DataError, match="no gene 'TP53'"):
        effects.gene_phenotypes(["TP53"])


def test_bad_smiles_are_named():
    with pytest.raises(DataError, match="not-a-molecule"):
        effects.compound_phenotypes(["CCO", "not-a-molecule"], [1.0, 1.0])


def test_batch_effects_know_no_perturbation():
    options = simulated.SimulatedOptions(
        perturbations="all", experiments=2, plates=2, wells_per_perturbation=1
    )
    sites = list(plan.plan_sites(options, plan.plan_treatments(options)))
    for site in sites[:: options.sites_per_well]:
        assert site.batch == effects.batch_effect(0, site.experiment, site.plate, site.well)
    gain = {}
    for site in sites:
        gain.setdefault((site.experiment, site.plate), []).append(math.log(site.batch.stain_gain[0]))
    spread = [np.std(values) for values in gain.values()]
    assert max(spread) < 0.05 < np.std([np.mean(values) for values in gain.values()])
    calm = options.model_copy(update={"batch_strength": 0.0})
    assert {s.batch.stain_gain for s in plan.plan_sites(calm, plan.plan_treatments(calm))} == {(1.0,) * 7}


def test_no_perturbation_keeps_its_well_from_plate_to_plate():
    options = simulated.SimulatedOptions()
    wells = {}
    for site in plan.plan_sites(options, plan.plan_treatments(options)):
        wells.setdefault(site.treatment.perturbation.perturbation_id, set()).add((site.experiment, site.well))
    for places in wells.values():
        assert len(places) == options.experiments * options.wells_per_perturbation
        assert len({well for _, well in places}) > options.wells_per_perturbation


def test_the_tree_reads_as_rxrx1(tmp_path, small):
    source = str(tmp_path / "tree")
    found = simulated.read(source, STORAGE, small)
    assert found.quarantine.num_rows == 0
    assert (Path(source) / "metadata.csv").read_text().splitlines()[0].replace('"', "") == (
        "site_id,well_id,cell_type,dataset,experiment,plate,well,site,well_type,sirna,sirna_id"
    )
    rows = found.sites.to_pylist()
    assert len(rows) == 12
    assert {(r["perturbation_id"], r["experiment"], r["split"]) for r in rows} == {
        ("dmso", "SIM-01", "train"),
        ("dmso", "SIM-02", "held_out_batch"),
        ("lovastatin", "SIM-01", "train"),
        ("lovastatin", "SIM-02", "held_out_batch"),
        ("simvastatin", "SIM-01", "held_out_perturbation"),
        ("simvastatin", "SIM-02", "held_out_both"),
    }
    statin = next(row for row in rows if row["perturbation_id"] == "lovastatin")
    assert statin["smiles"] == library.COMPOUNDS["lovastatin"].smiles
    assert (statin["concentration_um"], statin["moa"], statin["gene"]) == (10.0, "actin-disruptor", None)
    assert [row["is_control"] for row in rows] == [row["perturbation_id"] == "dmso" for row in rows]
    treatments = plan.plan_treatments(small)
    for row, site in zip(rows, plan.plan_sites(small, treatments), strict=True):
        raw = read_raw(row["channel_uris"], STORAGE)
        drawn = draw_fields(
            [site.treatment.phenotype], [site.batch], 64, keys=[site.key], nucleus_diameter_px=18.0
        )
        assert np.array_equal(raw, drawn.images[0])
        assert MAPPINGS["rxrx1_rgb"].apply(raw).shape == (3, 64, 64)


def test_the_truth_is_written_beside_it(tmp_path, small):
    source = str(tmp_path / "tree")
    found = simulated.read(source, STORAGE, small)
    truth = STORAGE.read_table(source + "/ground_truth.parquet")
    assert truth["site_id"].to_pylist() == found.sites["site_id"].to_pylist()
    drawn = pc.mean(
        truth.filter(pc.equal(truth["perturbation_id"], "lovastatin"))["phenotype_cell_spread"]
    ).as_py()
    assert drawn == pytest.approx(0.66, abs=0.04)
    assert pc.min(truth["field_cell_count"]).as_py() >= 0
    assert "batch_stain_gain" in truth.column_names


def test_interrupted_trees_are_completed_to_the_same_bytes(tmp_path, small, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    simulated.read(str(whole), STORAGE, small)
    written = []

    def fail_at_seven(root, site, image, storage):
        if len(written) == 7:
            raise KeyboardInterrupt
        written.append(site.site_id)
        real(root, site, image, storage)

    real = layout._write_site
    monkeypatch.setattr(layout, "_write_site", fail_at_seven)
    with pytest.raises(KeyboardInterrupt):
        layout.write_tree(str(cut), STORAGE, small)
    assert not (cut / "metadata.csv").exists()
    monkeypatch.undo()
    assert 0 < len(list(cut.rglob("*.png"))) < 72
    line = layout.write_tree(str(cut), STORAGE, small)
    assert "12 sites" in line and "12 of them" not in line
    files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(cut) for path in cut.rglob("*") if path.is_file())
    for name in files:
        assert (whole / name).read_bytes() == (cut / name).read_bytes(), name


def test_a_finished_tree_is_reused_and_another_refused(tmp_path, small):
    source = str(tmp_path / "tree")
    layout.write_tree(source, STORAGE, small)
    before = {path: path.stat().st_mtime_ns for path in Path(source).rglob("*.png")}
    assert "made before" in layout.write_tree(source, STORAGE, small)
    assert before == {path: path.stat().st_mtime_ns for path in Path(source).rglob("*.png")}
    with pytest.raises(FingerprintError, match="new folder"):
        layout.write_tree(source, STORAGE, small.model_copy(update={"seed": 1}))
    other = tmp_path / "real"
    other.mkdir()
    (other / "metadata.csv").write_text("site_id\n")
    with pytest.raises(FingerprintError, match="did not make it"):
        layout.write_tree(str(other), STORAGE, small)


def test_a_tree_in_object_storage_is_the_same(tmp_path, small, s3_env):
    options = small.model_copy(update={"bit_depth": 16})
    remote = f"s3://{s3_env.bucket}/simulated"
    there = simulated.read(remote, STORAGE, options).sites
    here = simulated.read(str(tmp_path), STORAGE, options).sites
    assert there.drop(["channel_uris"]) == here.drop(["channel_uris"])
    for far, near in zip(there["channel_uris"].to_pylist(), here["channel_uris"].to_pylist(), strict=True):
        raw = read_raw(far, STORAGE)
        assert raw.dtype == np.uint16
        assert np.array_equal(raw, read_raw(near, STORAGE))


def test_gene_trees_come_with_their_vectors(tmp_path, small):
    options = small.model_copy(update={"kind": "gene", "perturbations": ("RHOA", "CDC42"), "channels": 3})
    found = simulated.read(str(tmp_path), STORAGE, options)
    assert set(found.sites["gene"].to_pylist()) == {None, "RHOA", "CDC42"}
    assert found.sites["channel_uris"][0].as_py()[-1].endswith("_w3.png")
    rows = (tmp_path / "gene_vectors.csv").read_text().splitlines()
    assert len(rows) == 1 + sum(len(genes) for genes in library.PATHWAYS.values())
    assert len(rows[0].split(",")) == 1 + effects.GENE_WIDTH


def test_several_doses_are_several_perturbations(tmp_path, small):
    options = small.model_copy(update={"doses_um": (1.0, 10.0)})
    treatments = plan.plan_treatments(options)
    assert [t.perturbation.perturbation_id for t in treatments] == [
        "dmso", "lovastatin@1", "lovastatin@10", "simvastatin@1", "simvastatin@10",
    ]  # fmt: skip
    assert [t.held_out for t in treatments] == [False, False, False, True, True]
    assert treatments[1].phenotype.cell_spread > treatments[2].phenotype.cell_spread


def test_the_default_is_what_the_demo_needs():
    options = simulated.SimulatedOptions()
    treatments = plan.plan_treatments(options)
    sites = list(plan.plan_sites(options, treatments))
    assert len(treatments) == 14 and sum(t.held_out for t in treatments) == 3
    seen = {t.perturbation.moa for t in treatments if not t.held_out}
    assert {t.perturbation.moa for t in treatments if t.held_out} < seen
    assert {t.perturbation.moa for t in treatments} == {None, *effects.MECHANISM_NAMES}
    assert len(sites) == 14 * 64
    genes = plan.plan_treatments(options.model_copy(update={"kind": "gene"}))
    assert len(genes) == 14 and sum(t.held_out for t in genes) == 3
    assert find_dataset("simulated").channels[0] == MAPPINGS["rxrx1_rgb"].inputs[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"perturbations": ("aspirine",)}, "aspirine"),
        ({"held_out_perturbations": ("aspirine",)}, "aspirine"),
        ({"held_out_experiments": 4}, "at least one to train on"),
        ({"doses_um": (1.0, -1.0)}, "doses_um"),
        ({"wells_per_perturbation": 40}, "560 wells"),
    ],
)
def test_options_that_cannot_be(tmp_path, options, words):
    with pytest.raises(ConfigError, match=words):
        simulated.read(str(tmp_path), STORAGE, simulated.SimulatedOptions(**options))
