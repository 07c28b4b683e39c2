"""The registry of datasets: importers from what users have to SITES. A new one is a module and a line."""

from morphoray.datasets import bbbc021, gallery, imagefolder, jump, rohban, rxrx1, simulated
from morphoray.datasets.base import Dataset
from morphoray.datasets.bbbc021_tables import CHANNELS
from morphoray.errors import ConfigError
from morphoray.imaging.channels import CELL_PAINTING_CHANNELS

DATASETS: dict[str, Dataset] = {
    "rxrx1": Dataset(
        "rxrx1",
        rxrx1.Rxrx1Options,
        rxrx1.read,
        CELL_PAINTING_CHANNELS,
        "rxrx1_rgb",
        lambda options: rxrx1.channel_names(options.channels),
    ),
    "bbbc021": Dataset("bbbc021", bbbc021.Bbbc021Options, bbbc021.read, CHANNELS, "bbbc021_rgb"),
    "rohban": Dataset("rohban", rohban.RohbanOptions, rohban.read, gallery.CHANNEL_NAMES, "rohban_rgb"),
    "jump": Dataset("jump", jump.JumpOptions, jump.read, gallery.CHANNEL_NAMES, "rohban_rgb"),
    "imagefolder": Dataset(
        "imagefolder", imagefolder.ImagefolderOptions, imagefolder.read, ("red", "green", "blue"), "rgb"
    ),
    "simulated": Dataset(
        "simulated",
        simulated.SimulatedOptions,
        simulated.read,
        CELL_PAINTING_CHANNELS,
        "rxrx1_rgb",
        simulated.channel_names,
        lambda options: "bbbc021_rgb" if options.layout == "bbbc021" else "rxrx1_rgb",
    ),
}


def find_dataset(name: str) -> Dataset:
    """The registry's entry. Raises ConfigError listing the known names."""
    if name not in DATASETS:
        raise ConfigError(f"unknown dataset {name!r}; known: {', '.join(DATASETS)}")
    return DATASETS[name]
