"""The latent diffusion model: bundle, codec, objective, samplers (torch, no ray)."""
