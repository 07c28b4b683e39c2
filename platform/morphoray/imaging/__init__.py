"""Pixels: channel mappings, crops and views, and PNG in and out (numpy and Pillow only)."""
