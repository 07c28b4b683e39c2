"""The registry of encoders: perturbations to vectors. A new one is a module and a line here."""

from morphoray.errors import ConfigError
from morphoray.perturbations import concat, constant, dose, morgan, rdkit, table
from morphoray.perturbations.base import EncoderKind

ENCODERS: dict[str, EncoderKind] = {
    "rdkit": EncoderKind(rdkit.RdkitOptions, rdkit.fit, rdkit.load),
    "morgan": EncoderKind(morgan.MorganOptions, morgan.fit, morgan.load),
    "dose": EncoderKind(dose.DoseOptions, dose.fit, dose.load),
    "concat": EncoderKind(concat.ConcatOptions, concat.fit, concat.load),
    "table": EncoderKind(table.TableOptions, table.fit, table.load),
    "constant": EncoderKind(constant.ConstantOptions, constant.fit, constant.load),
}


def find_encoder(name: str) -> EncoderKind:
    """The registry's entry. Raises ConfigError listing the known names."""
    if name not in ENCODERS:
        raise ConfigError(f"unknown encoder {name!r}; known: {', '.join(ENCODERS)}")
    return ENCODERS[name]
