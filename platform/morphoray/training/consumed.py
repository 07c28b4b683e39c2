"""Blocks of samples as they are streamed, and the record of those that have been trained on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from morphoray.seeds import derive_seed

Part = tuple[int, int]  # epoch, number in the epoch


def sample_seed(seed: int, epoch: int, site_id: str, crop: int, view: str) -> int:
    """What a sample's noise is drawn from, and its place among the samples of its part."""
    return derive_seed("sample", seed, epoch, site_id, crop, view)


@dataclass(frozen=True)
class Block:
    """One part's samples.

    seeds: ascending, one a sample; mean, std: their posteriors as float16 bytes; bad: sites without an image;
    context: cell_type and experiment of each sample, by column.
    """

    part: Part
    seeds: list[int]
    perturbations: list[str]
    mean: list[bytes]
    std: list[bytes]
    bad: list[str]
    context: Mapping[str, list[str | None]] = field(default_factory=dict)


@dataclass
class Consumed:
    """Which samples of which epoch have been trained on, in parts.

    epochs: all parts of the epochs before it; finished: further whole parts; begun: of others the seed of the
    last sample taken (a part's samples come in the order of their seeds); bad: sites that had no image.
    """

    per_epoch: int
    epochs: int = 0
    finished: set[Part] = field(default_factory=set)
    begun: dict[Part, int] = field(default_factory=dict)
    bad: set[str] = field(default_factory=set)

    @classmethod
    def load(cls, per_epoch: int, told: Mapping[str, Any] | None) -> "Consumed":
        """From what `told` returned, None for nothing; per_epoch: parts an epoch."""
        if told is None:
            return cls(per_epoch)
        return cls(
            per_epoch,
            int(told["epochs"]),
            {(epoch, number) for epoch, number in told["finished"]},
            {(epoch, number): seed for epoch, number, seed in told["begun"]},
            set(told["bad"]),
        )

    def told(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "epochs": self.epochs,
            "finished": sorted([*part] for part in self.finished),
            "begun": sorted([*part, seed] for part, seed in self.begun.items()),
            "bad": sorted(self.bad),
        }

    def has(self, part: Part) -> bool:
        """Whether all of a part has been consumed."""
        return part[0] < self.epochs or part in self.finished

    def take(self, part: Part, seed: int) -> None:
        """Count a part's samples up to that of `seed`."""
        self.begun[part] = seed

    def finish(self, part: Part) -> None:
        """Count a whole part."""
        self.begun.pop(part, None)
        self.finished.add(part)

    def merge(self, others: list["Consumed"]) -> None:
        """Add what others have consumed since the same checkpoint."""
        for other in others:
            self.epochs = max(self.epochs, other.epochs)
            self.finished |= other.finished
            self.bad |= other.bad
            for part, seed in other.begun.items():
                self.begun[part] = max(seed, self.begun.get(part, -1))
        whole = {epoch for epoch, _ in self.finished}
        while self.epochs in whole and self._missing(self.epochs) == 0:
            self.epochs += 1
        self.finished = {part for part in self.finished if part[0] >= self.epochs}
        self.begun = {part: seed for part, seed in self.begun.items() if not self.has(part)}

    def _missing(self, epoch: int) -> int:
        return sum((epoch, number) not in self.finished for number in range(self.per_epoch))

    def left(self) -> tuple[int, int]:
        """The first epoch that isn't whole, and how many of its parts are not consumed whole."""
        return self.epochs, self._missing(self.epochs)
