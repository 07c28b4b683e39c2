"""Training data larger than memory: the order by arithmetic, what is held, and what is read ahead."""

import threading
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from morphoray.errors import DataError, StorageError
from morphoray.training.latents import LatentParts
from morphoray.training.windows import WindowOrder, WindowReader, open_latents

SIZES = (5, 0, 7, 3, 6)  # 21 rows; a part may have none of the training split


def table(part: int, size: int, side: int = 1) -> pa.Table:
    """Rows whose latents hold 100 x part + row, of the perturbations a and b in turn."""
    values = np.repeat(100.0 * part + np.arange(size), side * side).astype(np.float16)
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(values.reshape(size, 1, side, side))
    names = pa.array([("a", "b")[row % 2] for row in range(size)], pa.string())
    return pa.table({"perturbation_id": names, "latent_mean": tensors, "latent_std": tensors})


class Disk:
    """Parts that count how often and when each is read."""

    def __init__(self, sizes: tuple[int, ...], side: int = 1) -> None:
        self.tables = [table(part, size, side) if size else table(part, 1, side)[:0]
                       for part, size in enumerate(sizes)]  # fmt: skip
        self.reads: Counter[int] = Counter()
        self.gate = threading.Event()
        self.gate.set()

    def read(self, part: int) -> pa.Table:
        self.gate.wait(30)
        self.reads[part] += 1
        return self.tables[part]

    def parts(self) -> LatentParts:
        vectors = {"a": np.array([1.0]), "b": np.array([2.0])}
        parts = LatentParts([len(each) for each in self.tables], self.read, vectors)
        self.reads.clear()
        return parts


def names_of(data: WindowReader, step: int, batch: int, slots: range) -> list[int]:
    return [int(value) for value in data.at(step, batch, slots).mean.flatten()]


def held(data: WindowReader) -> int:
    """How many rows are in memory once what is being read is there."""
    return sum(len(window.result()) for window in data._windows.values())


@pytest.mark.parametrize("window", [1, 4, 8, 21, 1000])
def test_every_row_comes_once_an_epoch_and_in_another_order_in_the_next(window: int) -> None:
    data = WindowReader(Disk(SIZES).parts(), 3, window)
    rows = [100 * part + row for part, size in enumerate(SIZES) for row in range(size)]
    epochs = [[names_of(data, 21 * epoch + step, 1, range(1))[0] for step in range(21)] for epoch in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == rows
    assert epochs[0] != epochs[1]
    assert epochs[0] != rows


@pytest.mark.parametrize("workers", [2, 3])
def test_the_order_depends_on_neither_workers_nor_the_place_of_resume(workers: int) -> None:
    batch = 8  # straddles windows of 5 and epochs of 21
    one = WindowReader(Disk(SIZES).parts(), 3, 5)
    whole = [names_of(one, step, batch, range(batch)) for step in range(12)]
    cuts = [range(number * batch // workers, (number + 1) * batch // workers) for number in range(workers)]
    several = [WindowReader(Disk(SIZES).parts(), 3, 5) for _ in cuts]
    for step in range(12):
        parts = [names_of(data, step, batch, cut) for data, cut in zip(several, cuts, strict=True)]
        assert [value for part in parts for value in part] == whole[step]
    resumed = WindowReader(Disk(SIZES).parts(), 3, 5)
    assert names_of(resumed, 7, batch, range(batch)) == whole[7]
    other = WindowReader(Disk(SIZES).parts(), 4, 5)
    assert names_of(other, 0, batch, range(batch)) != whole[0]


def test_the_order_by_hand() -> None:
    order = WindowOrder(3, SIZES, 8)
    # Windows of 8, 8 and 5 rows; step 2 takes positions 16 to 23: the last and the next epoch's first.
    (last, rows), (first, others) = order.places(2, 8, range(8))
    assert (last, sorted(rows)) == (2, [0, 1, 2, 3, 4])
    assert (first, len(others)) == (3, 3)
    spans = [order.spans(number) for number in range(3)]
    assert [sum(span.stop - span.start for span in window) for window in spans] == [8, 8, 5]
    covered = Counter((span.part, row) for window in spans for span in window for row in range(*span[1:]))
    assert covered == Counter((part, row) for part, size in enumerate(SIZES) for row in range(size))


def test_resuming_reads_two_windows_and_not_the_epoch_before() -> None:
    sizes = (4,) * 50
    disk = Disk(sizes)
    data = WindowReader(disk.parts(), 0, 8)
    data.at(45, 4, range(4))  # position 180 of 200: window 22
    data.at(45, 4, range(4))
    held(data)
    assert sum(disk.reads.values()) == 4  # two parts for that window, two for the next


def test_the_next_window_is_read_while_the_first_is_used() -> None:
    disk = Disk((4,) * 6)
    data = WindowReader(disk.parts(), 0, 8)
    data.at(0, 4, range(4))
    held(data)
    disk.gate.clear()  # from here on storage does not answer
    data.at(1, 4, range(4))
    data.at(2, 4, range(4))  # the second window is there already
    assert sum(disk.reads.values()) == 4
    disk.gate.set()


def test_two_windows_are_held_whatever_the_size_of_the_set() -> None:
    side, rows = 32, 16
    disk = Disk((rows,) * 64, side)
    data = WindowReader(disk.parts(), 0, rows * 4)
    for step in range(64):
        data.at(step, rows, range(rows))
        assert held(data) == 2 * 4 * rows  # of 1024


def test_a_window_of_everything_and_no_window_have_the_same_rows() -> None:
    window = open_latents(Disk(SIZES).parts(), 1000)
    memory = open_latents(Disk(SIZES).parts(), None)
    assert len(window) == len(memory) == 21
    assert window.shape == memory.shape == (1, 1, 1)
    first, second = (data.ordered(3).at(0, 21, range(21)) for data in (window, memory))
    assert sorted(first.mean.flatten().tolist()) == sorted(second.mean.flatten().tolist())
    for data in (first, second):
        wanted = [1.0 + value % 100 % 2 for value in data.mean.flatten().tolist()]
        assert data.vectors[data.row].flatten().tolist() == wanted


def test_what_reading_raised_is_raised_at_the_step_that_needs_it() -> None:
    disk = Disk((4,) * 6)
    parts = disk.parts()
    data = WindowReader(parts, 0, 8)
    data.at(0, 4, range(4))

    def refused(part: int) -> pa.Table:
        raise StorageError("s3://b/part: no answer")

    held(data)
    parts._read = refused
    data.at(2, 4, range(4))
    with pytest.raises(StorageError, match="no answer"):
        data.at(4, 4, range(4))
    disk.tables[0] = table(0, 3)
    with pytest.raises(DataError, match="part 0 of the latents has 3 training rows, and had 4"):
        LatentParts((4,) * 6, disk.tables.__getitem__, {"a": np.array([1.0]), "b": np.array([2.0])})
