"""What the codec is trained with: pixels, divergence, spectra, activations' statistics, a discriminator."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn


def posterior_divergence(mean: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)), averaged over every latent element (nats)."""
    return 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()


def log_spectra(images: torch.Tensor, patch: int, floor: float = 0.02) -> torch.Tensor:
    """Log amplitudes of Hann-windowed patches at half overlap: (N * K, patches, patch, patch // 2 + 1).

    Amplitudes are scaled so that white noise of standard deviation s has root-mean-square amplitude s;
    `floor` (2.5 grey levels of 255 in -1..1) keeps read noise from counting as texture.
    """
    count, channels, height, width = images.shape
    window = torch.hann_window(patch, periodic=True, device=images.device)
    window2d = window[:, None] * window[None, :]
    patches = (
        images.reshape(count * channels, height, width)
        .unfold(1, patch, patch // 2)
        .unfold(2, patch, patch // 2)
    )
    spectra = torch.fft.rfft2(patches.flatten(1, 2) * window2d)
    power = (spectra.real.square() + spectra.imag.square()) / window2d.square().sum()
    return 0.5 * torch.log(power + floor**2)


def spectrum_loss(
    images: torch.Tensor, targets: torch.Tensor, patches: tuple[int, ...] = (8, 16)
) -> torch.Tensor:
    """Mean absolute difference of local log amplitudes, averaged over patch sizes.

    It asks for the right energy at each place, direction and frequency and leaves the phase free, which a
    pixel loss can't: under it the best guess at unknowable texture is none.
    """
    terms = [(log_spectra(images, patch) - log_spectra(targets, patch)).abs().mean() for patch in patches]
    return torch.stack(terms).mean()


class StatisticsLoss:
    """Difference of the statistics that a fixed network's activations have in two images.

    For every image, layer and channel: the mean and the standard deviation over positions, as Huang &
    Belongie 2017 describe style, each divided by its own deviation over real images. Like the spectra, it
    asks for the right texture and leaves open where each grain lies.

    layers: pixels (N, 3, H, W) in [0, 255], of any size, to activations (N, C, h, w). Images of other than
    three channels are seen channel by channel, in grey, and each has statistics of its own.
    enlarge: how much larger than the image the network sees it, as at judging (240 pixels for a crop of 64).
    """

    def __init__(
        self,
        layers: Callable[[torch.Tensor], list[torch.Tensor]],
        enlarge: float,
        images: torch.Tensor,
        batch: int = 8,
    ) -> None:
        """images: real ones (N, K, H, W) in -1..1, some tens, to take the deviations from."""
        self._layers, self._enlarge = layers, enlarge
        with torch.no_grad():
            found = [self._statistics(part) for part in torch.split(images, batch)]
        deviations = [torch.cat(layer).std(dim=0) for layer in zip(*found, strict=True)]
        # A channel that hardly ever changes would count a hundredfold.
        self._scales = [deviation + 0.05 * deviation.mean() for deviation in deviations]

    def _statistics(self, images: torch.Tensor) -> list[torch.Tensor]:
        side = [int(length * self._enlarge) for length in images.shape[2:]]
        pixels = F.interpolate((images + 1) * 127.5, size=side, mode="bicubic", align_corners=False)
        if images.shape[1] != 3:
            pixels = pixels.flatten(0, 1)[:, None].expand(-1, 3, -1, -1)
        found = [
            torch.cat([values.mean((2, 3)), (values.var((2, 3)) + 1e-4).sqrt()], dim=1)
            for values in self._layers(pixels)
        ]
        return [values.reshape(len(images), -1) for values in found]

    def __call__(self, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The mean absolute difference for images and targets (N, K, H, W) in -1..1, averaged over layers."""
        with torch.no_grad():
            wanted = self._statistics(targets)
        terms = zip(self._statistics(images), wanted, self._scales, strict=True)
        return torch.stack([((a - b) / scale).abs().mean() for a, b, scale in terms]).mean()


class PatchDiscriminator(nn.Module):
    """Real or reconstructed, judged for each patch of about 22 pixels (Isola et al. 2017, small).

    Forward: images (N, K, H, W) in -1..1 -> logits (N, 1, H/4, W/4).
    """

    def __init__(self, image_channels: int, width: int = 32) -> None:
        super().__init__()
        widths = (image_channels, width, 2 * width, 3 * width)
        self.layers = nn.ModuleList(
            [
                nn.Conv2d(widths[0], widths[1], 4, stride=2, padding=1),
                nn.Conv2d(widths[1], widths[2], 4, stride=2, padding=1),
                nn.Conv2d(widths[2], widths[3], 3, padding=1),
            ]
        )
        self.norms = nn.ModuleList([nn.Identity(), nn.GroupNorm(8, widths[2]), nn.GroupNorm(8, widths[3])])
        self.head = nn.Conv2d(widths[3], 1, 3, padding=1)

    def features(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Activations after each layer, shallow to deep."""
        found = []
        values = images
        for layer, norm in zip(self.layers, self.norms, strict=True):
            values = F.leaky_relu(norm(layer(values)), 0.2)
            found.append(values)
        return found

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.features(images)[-1])
        return logits


def hinge_discriminator(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """Hinge loss of the discriminator for its logits on originals and reconstructions."""
    return 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean())


def feature_matching(fake: list[torch.Tensor], real: list[torch.Tensor]) -> torch.Tensor:
    """Mean absolute difference of discriminator activations, averaged over layers (Wang et al. 2018)."""
    return torch.stack([(a - b.detach()).abs().mean() for a, b in zip(fake, real, strict=True)]).mean()
