"""The training loop and its state (torch, no ray)."""
