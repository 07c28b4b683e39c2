"""Train and sample MorphoDiff, perturbation-conditioned latent diffusion of Cell Painting images, on Ray."""

__version__ = "0.1.0"
