"""Weighted choice that comes out the same for the same unit, such as a request or a session."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def choose(weights: Sequence[int], salt: str, unit: str) -> int:
    """Return the position of the weight that `unit` falls to.

    Over many units each position comes up in proportion to its weight; one of weight 0 never does, unless all
    are 0: then the first. Raising one weight moves units to it and, between two, nowhere else. `salt` keeps
    the splits of different models apart.
    """
    total = sum(weights)
    if total == 0:
        return 0
    digest = hashlib.blake2b(f"{salt}\0{unit}".encode(errors="surrogatepass"), digest_size=8).digest()
    point = int.from_bytes(digest, "big") * total >> 64
    for position, weight in enumerate(weights):
        point -= weight
        if point < 0:
            return position
    raise AssertionError("a point below the total lies in one of the weights")
