"""The training loop without Ray: exact resume, accumulation, schedules, and what it refuses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from morphoray import schema
from morphoray.config import BundleConfig, TrainingConfig
from morphoray.diffusion.bundle import Bundle, new_bundle
from morphoray.errors import DataError, FingerprintError
from morphoray.training.latents import LatentParts, Latents, LatentSet, Span
from morphoray.training.loop import Hooks, learning_rate, make_state, share, train
from morphoray.training.state import TrainingState, load_state, take_snapshot
from morphoray.training.windows import Windows


@pytest.fixture
def fresh(codec_folder: Path) -> Callable[[], Bundle]:
    config = BundleConfig(preset="tiny", vae=str(codec_folder))
    return lambda: new_bundle(config, 16, 5, {"kind": "mlp", "tokens": 1, "hidden": 8}, seed=1)


@pytest.fixture(scope="module")
def data() -> LatentSet:
    generator = torch.Generator().manual_seed(0)
    return LatentSet(
        torch.randn(13, 16, 2, 2, generator=generator).half(),
        torch.rand(13, 16, 2, 2, generator=generator).half(),
        torch.arange(13) % 3,
        torch.randn(3, 5, generator=generator),
    )


def config(**values: Any) -> TrainingConfig:
    return TrainingConfig(
        **{
            "max_steps": 6,
            "batch_size": 4,
            "learning_rate": 1e-3,
            "schedule": "cosine",
            "checkpoint_every": 3,
            "log_every": 2,
        }
        | values
    )


def run(
    bundle: Bundle, data: Latents, settings: TrainingConfig, **hooks: Any
) -> tuple[TrainingState, list[dict[str, Any]]]:
    state = hooks.pop("state", None) or make_state(bundle, settings)
    records: list[dict[str, Any]] = []
    told = Hooks(
        log=records.append,
        save=hooks.get("save", lambda state: None),
        sample=hooks.get("sample", lambda state: None),
    )
    train(bundle, data, settings, 9, 0.2, Accelerator(cpu=True), state, told)
    return state, records


def same(first: TrainingState, second: TrainingState) -> bool:
    pairs = zip(first.model.state_dict().values(), second.model.state_dict().values(), strict=True)
    averaged = zip(first.ema.shadow_params, second.ema.shadow_params, strict=True)
    return all(torch.equal(a, b) for a, b in [*pairs, *averaged])


class KilledError(Exception):
    pass


def test_a_run_that_stopped_ends_in_the_same_weights(
    fresh: Callable[[], Bundle], data: LatentSet, tmp_path: Path
) -> None:
    whole, records = run(fresh(), data, config())

    def save_and_die(state: TrainingState) -> None:
        take_snapshot(state, "f").write(tmp_path / "checkpoint")
        raise KilledError

    with pytest.raises(KilledError):
        run(fresh(), data, config(), save=save_and_die)
    bundle = fresh()
    state = make_state(bundle, config())
    load_state(state, tmp_path / "checkpoint", "f")
    assert state.step == 3
    resumed, later = run(bundle, data, config(), state=state)
    assert same(whole, resumed)
    assert [r["loss"] for r in records if r["step"] > 3] == [r["loss"] for r in later]
    untrained = make_state(fresh(), config())
    assert not same(whole, untrained)


def test_accumulated_micro_batches_are_one_batch(fresh: Callable[[], Bundle], data: LatentSet) -> None:
    _, whole = run(fresh(), data, config(max_steps=3, log_every=1))
    _, parts = run(fresh(), data, config(max_steps=3, log_every=1, gradient_accumulation=4))
    np.testing.assert_allclose([r["loss"] for r in whole], [r["loss"] for r in parts], rtol=1e-4)


def test_gradient_checkpointing_changes_no_number(fresh: Callable[[], Bundle], data: LatentSet) -> None:
    plain, _ = run(fresh(), data, config(max_steps=2))
    checkpointed, _ = run(fresh(), data, config(max_steps=2, gradient_checkpointing=True))
    for a, b in zip(plain.model.parameters(), checkpointed.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_bf16_trains_and_keeps_fp32_weights(fresh: Callable[[], Bundle], data: LatentSet) -> None:
    bundle = fresh()
    settings = config(max_steps=2, precision="bf16")
    state = make_state(bundle, settings)
    records: list[dict[str, Any]] = []
    hooks = Hooks(records.append, lambda state: None, lambda state: None)
    AcceleratorState._reset_state(reset_partial_state=True)  # one precision a process, as in a Ray worker
    train(bundle, data, settings, 9, 0.0, Accelerator(cpu=True, mixed_precision="bf16"), state, hooks)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert all(p.dtype == torch.float32 for p in state.model.parameters())
    assert np.isfinite(records[-1]["loss"])


def test_a_loss_that_is_not_finite_stops_with_the_step(fresh: Callable[[], Bundle], data: LatentSet) -> None:
    broken = LatentSet(torch.full_like(data.mean, float("nan")), data.std, data.row, data.vectors)
    with pytest.raises(DataError, match="the loss at step 2 is nan"):
        run(fresh(), broken, config())


def test_learning_rate_by_hand() -> None:
    settings = config(max_steps=10, warmup_steps=2, learning_rate=4.0)
    assert [learning_rate(settings, step) for step in (0, 1, 2, 6)] == pytest.approx([2.0, 4.0, 4.0, 2.0])
    assert learning_rate(settings, 10) == pytest.approx(0.0)
    assert learning_rate(config(schedule="constant", warmup_steps=0), 5) == 1e-3


def test_a_checkpoint_of_other_settings_or_in_pieces_is_refused(
    fresh: Callable[[], Bundle], tmp_path: Path
) -> None:
    state = make_state(fresh(), config())
    take_snapshot(state, "one").write(tmp_path / "c")
    with pytest.raises(FingerprintError, match=r"config\.yaml"):
        load_state(state, tmp_path / "c", "two")
    (tmp_path / "c" / "ema.safetensors").unlink()
    with pytest.raises(DataError, match=r"lacks ema\.safetensors"):
        load_state(state, tmp_path / "c", "one")


@pytest.mark.parametrize("window", [4, 50])
def test_windows_resume_like_memory(fresh: Callable[[], Bundle], tmp_path: Path, window: int) -> None:
    tables = [latents_table(ids, 16) for ids in (["a", "b", "a"], ["b", "c"], ["c"] * 8)]
    vectors = {name: np.full(5, float(number)) for number, name in enumerate("abc")}

    def data() -> Windows:
        return Windows(parts_of(tables, vectors), window)

    whole, _ = run(fresh(), data(), config())

    def save_and_die(state: TrainingState) -> None:
        take_snapshot(state, "f").write(tmp_path / "checkpoint")
        raise KilledError

    with pytest.raises(KilledError):
        run(fresh(), data(), config(), save=save_and_die)
    bundle = fresh()
    state = make_state(bundle, config())
    load_state(state, tmp_path / "checkpoint", "f")
    resumed, _ = run(bundle, data(), config(), state=state)
    assert same(whole, resumed)


def test_uneven_micro_batches_are_one_batch(fresh: Callable[[], Bundle], data: LatentSet) -> None:
    _, whole = run(fresh(), data, config(max_steps=3, log_every=1, batch_size=7))
    _, parts = run(fresh(), data, config(max_steps=3, log_every=1, batch_size=7, gradient_accumulation=3))
    np.testing.assert_allclose([r["loss"] for r in whole], [r["loss"] for r in parts], rtol=1e-4)
    assert [list(share(range(7), 3, number)) for number in range(3)] == [[0, 1], [2, 3], [4, 5, 6]]


def latents_table(ids: list[str], channels: int = 1) -> pa.Table:
    size = channels * 4
    values = np.arange(len(ids) * size, dtype=np.float16).reshape(len(ids), channels, 2, 2)
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(values)
    rows = [
        {
            "site_id": f"s{i}",
            "experiment": "e",
            "cell_type": (None, "U2OS")[i % 2],
            "view": "identity",
            "crop": 0,
            "perturbation_id": name,
            "perturbation_kind": "gene",
            "smiles": None,
            "gene": name,
            "concentration_um": None,
            "moa": None,
            "is_control": False,
            "split": "train",
        }
        for i, name in enumerate(ids)
    ]
    table = pa.Table.from_pylist(rows)
    for name in ("latent_mean", "latent_std"):
        table = table.append_column(name, tensors)
    return schema.conform(table, schema.latents(channels, 2, 2), "test")


def parts_of(tables: list[pa.Table], vectors: dict[str, np.ndarray]) -> LatentParts:
    return LatentParts([len(table) for table in tables], tables.__getitem__, vectors)


def test_latents_join_their_vectors() -> None:
    vectors = {"b": np.array([2.0, 2.0]), "a": np.array([1.0, 1.0])}
    parts = parts_of([latents_table(["a", "b"]), latents_table(["b"])], vectors)
    rows = parts.load([Span(0, 0, 2), Span(1, 0, 1)]).take(np.array([2, 0]))
    latents, conditions = rows.sample(slice(0, 2), torch.ones(2, 1, 2, 2), 0.5, torch.tensor([False, False]))
    assert conditions.tolist() == [[2.0, 2.0], [1.0, 1.0]]
    # (mean + 1 x std) x 0.5 = mean for mean = std: the rows' own values.
    assert latents[1].flatten().tolist() == [0.0, 1.0, 2.0, 3.0]
    with pytest.raises(DataError, match="without a condition vector"):
        parts_of([latents_table(["c"])], vectors).load([Span(0, 0, 1)])
    with pytest.raises(DataError, match="no latents to train on"):
        parts_of([latents_table(["a"]).slice(1)], vectors)
