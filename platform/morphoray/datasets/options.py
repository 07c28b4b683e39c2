"""What every importer takes: which rows of the data, and what is held out of training."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

Share = Annotated[float, Field(ge=0, lt=1)]


class HeldOutFraction(BaseModel):
    """Shares that are held out at random."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    perturbations: Share = 0.0
    experiments: Share = 0.0


class SelectionOptions(BaseModel):
    """Which sites, and what is held out: the part that the simulator shares, whose tree names the rest."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True, allow_inf_nan=False)

    filter: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="keep the sites with one of these values, by column of SITES"
    )
    limit: int | None = Field(
        None, ge=1, description="at most so many sites, evenly spaced over those that the filter keeps"
    )
    held_out_plates: tuple[str, ...] = Field((), description="plates, or experiment/plate for one of them")
    held_out_scaffolds: tuple[str, ...] | Share = Field(
        (), description="SMILES of Bemis-Murcko scaffolds, or the share of the compounds, by whole scaffolds"
    )
    held_out_fraction: HeldOutFraction = HeldOutFraction()
    held_out_seed: int | None = Field(None, description="of what is held out at random; null: the run's seed")

    @field_validator("filter", mode="before")
    @classmethod
    def _values_as_text(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        listed = {name: item if isinstance(item, list | tuple) else [item] for name, item in value.items()}
        return {name: tuple(str(item) for item in items) for name, items in listed.items()}

    @property
    def is_random(self) -> bool:
        """Whether what is held out depends on the seed."""
        fraction, scaffolds = self.held_out_fraction, self.held_out_scaffolds
        shares = (fraction.perturbations, fraction.experiments, scaffolds)
        return any(isinstance(share, float) and share > 0 for share in shares)


class ImportOptions(SelectionOptions):
    """The options of every importer; each adds its own."""

    held_out_experiments: tuple[str, ...] = Field((), description="batches")
    held_out_perturbations: tuple[str, ...] | str = Field(
        (), description="ids or genes, or a CSV perturbation,ood"
    )
    check_files: bool = Field(True, description="list the folders and quarantine sites that lack a file")
