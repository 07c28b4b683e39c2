"""Perturbations: what was done to the cells, and its vectors."""
