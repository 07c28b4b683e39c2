"""A closed-form start for the codec: principal components on the way in, least squares on the way out.

Drawn at random, a small AutoencoderKL spends thousands of steps on what 16 principal components of 8 x 8
blocks do at once (29 dB on simulated crops, against 15 dB after 600 steps). So every residual branch starts
at zero, which leaves a linear pyramid, and the pyramid is solved on a few batches. What is not linear, the
group norm and SiLU before either output, is made so: silu(x) - silu(-x) = x, and a pair of constants in
each group keeps its variance, and so its scale, nearly the same for all images.
"""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from morphoray.errors import ConfigError

CONSTANT = 10.0  # the share of a group's variance in its constants, over that of its values
SPARE = 0.3  # scale of the random weights of channels that carry nothing yet
Conv = Any  # nn.Conv2d with a bias, which its type does not promise
LOGVAR = -5.0  # posterior deviation 0.08 while latents have deviation about 1


@torch.no_grad()
def linear_start(codec: AutoencoderKL, images: torch.Tensor) -> None:
    """Set a freshly built codec's weights from some 200 images (N, K, H, W) in -1..1, in place.

    Raises ConfigError for widths or groups that can't carry it.
    """
    widths = list(codec.config.block_out_channels)
    if len(widths) < 2 or widths[0] == widths[1] or widths[-1] == widths[-2]:
        raise ConfigError(
            f"codec.block_out_channels: found {widths}, expected two or more of which the first two, and the "
            "last two, differ: the closed-form start uses the 1 x 1 convolutions that join them."
        )
    for module in codec.modules():
        if isinstance(module, ResnetBlock2D):
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)
    pyramid = _start_encoder(codec, images)
    _identity(codec.quant_conv)
    _identity(codec.post_quant_conv)
    codec.quant_conv.bias[codec.config.latent_channels :] = LOGVAR
    _start_decoder(codec, codec.encode(images).latent_dist.mean, pyramid)


def _start_encoder(codec: AutoencoderKL, images: torch.Tensor) -> list[torch.Tensor]:
    """Solve the encoder; returns its linear features from fine (the images) to coarse."""
    encoder = codec.encoder
    _spare(encoder.conv_in)
    _pass_on(encoder.conv_in, images.shape[1])
    values, pyramid = encoder.conv_in(images), [images]
    for block in encoder.down_blocks:
        shortcut = block.resnets[0].conv_shortcut
        if block.downsamplers is None:
            break
        if shortcut is not None:
            _spare(shortcut)
            _pass_on(shortcut, values.shape[1])
            values = shortcut(values)
        conv = block.downsamplers[0].conv
        _principal_cells(conv, values)
        values = block.downsamplers[0](values)
        pyramid.append(values)
    last = encoder.down_blocks[-1].resnets[0].conv_shortcut
    basis, mean, deviation = _principal(values.transpose(0, 1).flatten(1), values.shape[1])
    # Half-whitened: the latents keep their order of importance, but not its whole range.
    basis = basis / deviation.clamp(min=1e-2 * float(deviation[0])).sqrt()[:, None]
    basis = basis / (basis @ (values.transpose(0, 1).flatten(1) - mean[:, None])).square().mean().sqrt()
    _pairs(last, encoder.conv_norm_out, encoder.conv_out, basis, mean, codec.config.latent_channels)
    return pyramid


def _start_decoder(codec: AutoencoderKL, latents: torch.Tensor, pyramid: list[torch.Tensor]) -> None:
    decoder, levels = codec.decoder, list(reversed(pyramid))
    _spare(decoder.conv_in)
    _regress(decoder.conv_in, latents, levels[0])
    values = decoder.conv_in(latents)
    for block, target in zip(decoder.up_blocks, levels[1:], strict=False):
        shortcut = block.resnets[0].conv_shortcut
        if shortcut is not None:
            _spare(shortcut)
            _pass_on(shortcut, shortcut.out_channels)
            values = shortcut(values)
        values = F.interpolate(values, scale_factor=2.0, mode="nearest")
        conv = block.upsamplers[0].conv
        _spare(conv)
        _regress(conv, values, target)
        values = conv(values)
    image_channels = levels[-1].shape[1]
    basis = torch.eye(image_channels, values.shape[1])
    last = decoder.up_blocks[-1].resnets[0].conv_shortcut
    mean = torch.zeros(values.shape[1])
    _pairs(last, decoder.conv_norm_out, decoder.conv_out, basis, mean, image_channels)


def _spare(conv: Conv) -> None:
    conv.weight.mul_(SPARE)
    nn.init.zeros_(conv.bias)


def _identity(conv: Conv) -> None:
    nn.init.dirac_(conv.weight)
    nn.init.zeros_(conv.bias)


def _pass_on(conv: Conv, count: int) -> None:
    """Let the first `count` inputs through unchanged as the first outputs."""
    count = min(count, conv.in_channels, conv.out_channels)
    centre = conv.kernel_size[0] // 2
    conv.weight[:count] = 0.0
    conv.weight[range(count), range(count), centre, centre] = 1.0


def _principal(rows: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The first principal directions (count, D), the mean (D,) and deviations (count,) of columns (D, n)."""
    mean = rows.mean(dim=1)
    centred = (rows - mean[:, None]).double()
    power, directions = torch.linalg.eigh(centred @ centred.T / rows.shape[1])
    order = torch.arange(len(power) - 1, max(-1, len(power) - 1 - count), -1)
    basis = directions[:, order].T.float()
    return basis, mean, power[order].clamp(min=0).sqrt().float()


def _principal_cells(conv: Conv, values: torch.Tensor) -> None:
    """Down-sample by the principal components of 2 x 2 cells: taps 0 and 1 of a kernel padded at its end."""
    cells = F.pixel_unshuffle(values, 2).transpose(0, 1).flatten(1)  # rows ordered (channel, dy, dx)
    basis, mean, _ = _principal(cells, conv.out_channels)
    conv.weight.mul_(0.0)
    conv.weight[: len(basis), :, :2, :2] = basis.reshape(len(basis), conv.in_channels, 2, 2)
    conv.bias.zero_()
    conv.bias[: len(basis)] = -(basis @ mean)


def _regress(conv: Conv, values: torch.Tensor, target: torch.Tensor, rows: int = 240_000) -> None:
    """Let the first outputs be the ridge regression of `target` on the 3 x 3 neighbourhoods of `values`."""
    per_call = max(1, rows // target[0, 0].numel())
    size = conv.in_channels * conv.kernel_size[0] ** 2
    gram, cross = torch.zeros(size + 1, size + 1), torch.zeros(size + 1, target.shape[1])
    values, target = values[:per_call], target[:per_call]
    for start in range(0, len(values), 32):
        x, y = values[start : start + 32], target[start : start + 32]
        columns = F.unfold(x, conv.kernel_size, padding=conv.padding).transpose(0, 1).flatten(1)
        columns = torch.cat([columns, torch.ones(1, columns.shape[1])])
        gram += columns @ columns.T
        cross += columns @ y.transpose(0, 1).flatten(1).T
    ridge = 1e-4 * gram.diagonal().mean() * torch.eye(size + 1)
    solution = torch.linalg.solve((gram + ridge).double(), cross.double()).float().T
    count = target.shape[1]
    conv.weight[:count] = solution[:, :-1].reshape(count, *conv.weight.shape[1:])
    conv.bias[:count] = solution[:, -1]


def _pairs(
    first: Conv,
    norm: nn.GroupNorm,
    last: Conv,
    basis: torch.Tensor,
    mean: torch.Tensor,
    outputs: int,
) -> None:
    """Make last(silu(norm(first(v)))) = basis @ (v - mean) for the first `outputs` rows of `basis`.

    In each group: p values, a constant, and the negatives of both. `first` is 1 x 1, `last` 3 x 3.
    """
    groups, width = norm.num_groups, norm.num_channels // norm.num_groups
    pairs = width // 2 - 1
    if pairs * groups < outputs:
        raise ConfigError(
            f"codec.norm_num_groups: {norm.num_channels} channels in {groups} groups carry {pairs * groups} "
            f"values, but {outputs} are needed. Use fewer groups or wider block_out_channels."
        )
    _spare(first)
    last.weight.mul_(0.0)
    nn.init.zeros_(last.bias)
    half = width // 2
    for index in range(groups * pairs):
        start = (index % groups) * width
        plus, minus = start + index // groups, start + half + index // groups
        if index < len(basis):
            first.weight[plus, :, 0, 0], first.bias[plus] = basis[index], -(basis[index] @ mean)
        first.weight[minus], first.bias[minus] = -first.weight[plus], -first.bias[plus]
        if index < outputs:
            last.weight[index, plus, 1, 1], last.weight[index, minus, 1, 1] = 1.0, -1.0
    for group in range(groups):
        for channel, sign in ((group * width + pairs, 1.0), (group * width + half + pairs, -1.0)):
            first.weight[channel], first.bias[channel] = 0.0, sign * (CONSTANT * pairs) ** 0.5
    last.weight.mul_((2 * pairs * (CONSTANT + 1) / width) ** 0.5)  # the deviation that the norm divides by
