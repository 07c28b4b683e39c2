"""From a perturbation's vector to the cross-attention tokens the denoiser sees."""

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from morphoray.errors import ConfigError


class PadProjection(nn.Module):
    """The paper's projection: the vector between constant ones, as one token; no parameters.

    The original repeats the token 77 times. The softmax over equal keys is uniform, so the output of
    cross-attention is the same for any number of identical tokens, and one is enough.
    """

    kind = "pad"

    def __init__(self, vector_width: int, token_width: int) -> None:
        super().__init__()
        if vector_width > token_width:
            raise ConfigError(
                f"perturbations.projection: pad puts a vector of {vector_width} numbers into a token of "
                f"{token_width}, which is too narrow. Use projection: mlp, or a wider preset."
            )
        self.vector_width, self.token_width, self.tokens = vector_width, token_width, 1
        self.left = (token_width - vector_width) // 2

    def forward(self, vectors: Tensor, drop: Tensor | None = None) -> Tensor:
        """(N, vector_width) -> (N, 1, token_width); rows where `drop` (N, bool) is set are all ones."""
        right = self.token_width - self.vector_width - self.left
        padded = nn.functional.pad(vectors, (self.left, right), value=1.0)
        if drop is not None:
            padded = torch.where(drop[:, None], torch.ones_like(padded), padded)
        return padded[:, None]


class MlpProjection(nn.Module):
    """The learned projection: a two-layer perceptron to k tokens, and a learned null token."""

    kind = "mlp"

    def __init__(self, vector_width: int, token_width: int, tokens: int = 1, hidden: int = 256) -> None:
        super().__init__()
        self.vector_width, self.token_width, self.tokens, self.hidden = (
            vector_width,
            token_width,
            tokens,
            hidden,
        )
        self.layers = nn.Sequential(
            nn.Linear(vector_width, hidden), nn.SiLU(), nn.Linear(hidden, tokens * token_width)
        )
        self.norm = nn.LayerNorm(token_width)
        self.null = nn.Parameter(torch.zeros(tokens, token_width))

    def forward(self, vectors: Tensor, drop: Tensor | None = None) -> Tensor:
        """(N, vector_width) -> tokens (N, k, token_width); rows where `drop` is set are the null token."""
        tokens: Tensor = self.norm(self.layers(vectors).view(len(vectors), self.tokens, self.token_width))
        if drop is not None:
            tokens = torch.where(drop[:, None, None], self.null.to(tokens.dtype), tokens)
        return tokens


Projection = PadProjection | MlpProjection


def make_projection(spec: dict[str, Any]) -> Projection:
    """The projection described by `spec`: kind, vector_width, token_width, and tokens and hidden for mlp."""
    if spec["kind"] == "pad":
        return PadProjection(spec["vector_width"], spec["token_width"])
    if spec["kind"] == "mlp":
        return MlpProjection(spec["vector_width"], spec["token_width"], spec["tokens"], spec["hidden"])
    raise ConfigError(f"perturbations.projection: {spec['kind']!r} is unknown. Known: mlp, pad.")


def projection_spec(projection: Projection) -> dict[str, Any]:
    """What `make_projection` needs to build the same module again."""
    spec: dict[str, Any] = {
        "kind": projection.kind,
        "vector_width": projection.vector_width,
        "token_width": projection.token_width,
    }
    if isinstance(projection, MlpProjection):
        spec |= {"tokens": projection.tokens, "hidden": projection.hidden}
    return spec


class Denoiser(nn.Module):
    """The UNet and the projection as the one module that is trained, averaged and sampled from."""

    def __init__(self, unet: UNet2DConditionModel, projection: Projection) -> None:
        super().__init__()
        self.unet = unet
        self.projection = projection

    def forward(
        self, latents: Tensor, timesteps: Tensor, vectors: Tensor, drop: Tensor | None = None
    ) -> Tensor:
        """Predict noise or velocity.

        latents: scaled, noisy, (N, C, H, W); timesteps: (N,) int64 in 0..T-1; vectors: (N, vector_width);
        drop: (N,) bool, rows that see the null condition. Returns (N, C, H, W).
        """
        tokens = self.projection(vectors, drop)
        output: Tensor = self.unet(latents, timesteps, encoder_hidden_states=tokens, return_dict=False)[0]
        return output
