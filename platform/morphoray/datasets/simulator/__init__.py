"""The simulator: Cell Painting fields whose phenotypes are a known function of the perturbation."""
