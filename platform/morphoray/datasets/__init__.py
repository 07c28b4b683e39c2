"""Datasets: importers that turn what users have into SITES."""
