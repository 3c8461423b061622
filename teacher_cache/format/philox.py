"""Counter-based random words: the same on every machine, whatever asks for them and in what order.

Raw words of Philox 4x64 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), not NumPy's
`Generator` methods, which may change between versions.
"""

import hashlib

import numpy as np

Key = tuple[int, int]


def key_of(*parts: str | int) -> Key:
    """A 128-bit key out of names and numbers, as two words."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little")


def words(key: Key, *, stream: int, index: int, size: int) -> np.ndarray:
    """`[size]` uint64 words of one stream at one index; streams and indices never overlap below 2^64 words."""
    # As arrays: NumPy would round a tuple of words above and below 2^63 to float64.
    counter = np.array((0, stream, index, 0), dtype=np.uint64)
    return np.random.Philox(key=np.array(key, dtype=np.uint64), counter=counter).random_raw(size)


def uniforms(raw: np.ndarray) -> np.ndarray:
    """Maps uint64 words to float64 in [0, 1), on a grid of 2^-53."""
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(raw: np.ndarray) -> np.ndarray:
    """The order that sorts `raw`: a random permutation of `len(raw)` places."""
    return np.argsort(raw, kind="stable")
