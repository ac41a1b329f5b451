"""WHICH PICTURE A LOSS LOOKS AT: the kinds of spoiled picture."""

import hashlib
import json

import numpy as np


def generator(run_seed: int, pair_id: str, epoch: int, view: str) -> np.random.Generator:
    """The randomness of one view of one pair in one epoch: the same in every process, worker and restart."""
    name = json.dumps([run_seed, pair_id, epoch, view])  # unlike plain joining, no two lists give one name
    key = np.frombuffer(hashlib.sha256(name.encode()).digest()[:16], "<u8")
    return np.random.Generator(np.random.Philox(key=key))
