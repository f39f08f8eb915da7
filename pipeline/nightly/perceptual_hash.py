"""A perceptual hash: images that look alike have hashes that differ in few bits.

The DCT hash of C. Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions (2010), section 3.2.1:
the image in gray, 32 x 32 pixels, its two-dimensional DCT-II, of which the 8 x 8 lowest frequencies are compared with
their median.

Shape suffixes: H, W height and width; N images; B the 64 bits of a hash.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

HASH_BITS = 64
_EDGE, _LOWEST = 32, 8
# Hashes that are compared with all others at once: a block of 1024 x 16384 distances takes 64 MB.
_BLOCK = 1024


def perceptual_hash(gray_HW: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Bits [64] of an image [H, W]: the lowest frequencies, row by row, and whether each is above their median."""
    small_HW = cv2.resize(gray_HW, (_EDGE, _EDGE), interpolation=cv2.INTER_AREA)
    lowest_B = np.asarray(cv2.dct(small_HW.astype(np.float32)))[:_LOWEST, :_LOWEST].reshape(-1)
    return lowest_B > np.median(lowest_B)


def near_duplicate_share(hashes_NB: NDArray[np.bool_], max_bits: int) -> float:
    """Share of hashes [N, 64] of which another one differs in `max_bits` bits or fewer; 0 for fewer than two."""
    count = len(hashes_NB)
    if count < 2:
        return 0.0
    signs_NB = np.where(hashes_NB, np.float32(1), np.float32(-1))
    num_alike = 0
    for start in range(0, count, _BLOCK):
        # Equal bits count 1, others -1: the product is 64 - 2 * distance, exact in float32.
        products = signs_NB[start : start + _BLOCK] @ signs_NB.T
        rows = np.arange(len(products))
        products[rows, start + rows] = -HASH_BITS  # an image is no duplicate of itself
        num_alike += int((products.max(axis=1) >= HASH_BITS - 2 * max_bits).sum())
    return num_alike / count
