"""Order and chance from keys alone: the same numbers on every machine, process and library version.

NumPy promises no stable random stream between versions, and a generator would be state to save. Here the "random"
number of an item is a hash of its key (seed, epoch, item), by the finaliser of SplitMix64 (Steele, Lea and Flood,
"Fast splittable pseudorandom number generators", 2014).
"""

import numpy as np
from numpy.typing import NDArray

_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def keyed_hash(items: NDArray[np.uint64], *key: int) -> NDArray[np.uint64]:
    """Hash every item under the key: uint64 [n] → uint64 [n]."""
    hashed = items
    with np.errstate(over="ignore"):
        for part in key:
            hashed = _mix(hashed + _mix(np.array([part], dtype=np.uint64) + _GOLDEN_GAMMA))
    return hashed


def keyed_permutation(length: int, *key: int) -> NDArray[np.int64]:
    """The numbers 0 … length-1 in an order that depends on the key alone: int64 [length]."""
    hashed = keyed_hash(np.arange(length, dtype=np.uint64), *key)
    return np.argsort(hashed, kind="stable")


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
