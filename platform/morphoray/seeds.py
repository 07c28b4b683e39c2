"""Randomness as an argument: every stream is a pure function of a run's seed and a key."""

import hashlib
import json
from typing import Any

import numpy as np


def derive_seed(*parts: str | int) -> int:
    """A 63-bit seed from any key, the same on every machine and Python process.

    The first 8 bytes of SHA-256 over the JSON form of `parts`, so ("a", 12) and ("a1", 2) differ.
    """
    digest = hashlib.sha256(json.dumps(parts, separators=(",", ":")).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def numpy_generator(*parts: str | int) -> np.random.Generator:
    """A NumPy generator for the key `parts`."""
    return np.random.default_rng(derive_seed(*parts))


def fingerprint(value: Any) -> str:
    """16 hexadecimal digits that name a JSON-serialisable value, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
