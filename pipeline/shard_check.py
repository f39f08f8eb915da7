"""Whether a shard's tar is what its task and its run ask for, down to the pixels."""

from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.shard_reader import DamagedTarError, Member, members_in, parse_metadata
from pipeline.shard_writer import DIGITAL_SOURCE_TYPE, member_names
from schemas.sample import IGNORE, Candidate, ImageShape, SampleMetadata, sample_key
from schemas.shard import ShardTask

# What a PNG's header says of width and height, then of bit depth (8) and colour type (0: gray).
_PNG_SIZE, _PNG_DEPTH_AND_COLOUR = slice(16, 24), slice(24, 26)
_MEMBERS_A_SAMPLE = 3


@dataclass(frozen=True)
class ShardOrigin:
    """What every shard of a run must say of itself."""

    fingerprint: str
    checkpoint_sha256: str
    classes: tuple[str, ...]
    image_shape: ImageShape
    image_format: str


@dataclass(frozen=True)
class _PackedSample:
    image: Member
    mask: Member
    metadata: SampleMetadata


def tar_problems(tar: bytes, task: ShardTask, origin: ShardOrigin, decoders: Executor | None) -> list[str]:
    """All that is wrong with a tar, one line each, empty if it is sound.

    decoders: threads that decode images and masks; None leaves pixels unread.
    """
    try:
        samples = list(_unpack(tar, origin.image_format))
    except DamagedTarError as error:
        return [str(error)]
    problems = [*_count_problems(samples, task)]
    for sample in samples:
        problems += _metadata_problems(sample.metadata, origin)
    if decoders is not None:
        for found in decoders.map(lambda sample: list(_pixel_problems(sample, origin)), samples):
            problems += found
    return problems


def _unpack(tar: bytes, image_format: str) -> Iterator[_PackedSample]:
    """Samples in order. Raises DamagedTarError where members are missing, strange or out of order."""
    members = list(members_in(tar))
    for start in range(0, len(members), _MEMBERS_A_SAMPLE):
        key = members[start].name.split(".")[0]
        found = [member.name for member in members[start : start + _MEMBERS_A_SAMPLE]]
        expected = list(member_names(key, image_format))
        if found != expected:
            raise DamagedTarError(f"it holds {', '.join(found)} where {', '.join(expected)} should be")
        image, mask, metadata = members[start : start + _MEMBERS_A_SAMPLE]
        yield _PackedSample(image, mask, parse_metadata(metadata))


def _count_problems(samples: list[_PackedSample], task: ShardTask) -> Iterator[str]:
    """Candidates are the first seeds of the shard's own block, without a gap: then no seed is in two shards."""
    if len(samples) != task.num_samples:
        yield f"it holds {len(samples)} samples instead of {task.num_samples}"
    candidates = [c for sample in samples for c in (*sample.metadata.dropped_before, sample.metadata.candidate)]
    if len(candidates) > task.num_seeds:
        yield f"it tried {len(candidates)} seeds, but owns {task.num_seeds}"
    for expected, candidate in enumerate(candidates, start=task.first_seed):
        if candidate.seed != expected:
            yield f"candidate {expected - task.first_seed} is seed {candidate.seed} instead of {expected}"
            return


def _metadata_problems(metadata: SampleMetadata, origin: ShardOrigin) -> Iterator[str]:
    name = f"{metadata.key}.json"
    if metadata.key != sample_key(metadata.candidate.seed):
        yield f"{name}: is of seed {metadata.candidate.seed}, which does not go by this name"
    if not metadata.candidate.kept or any(candidate.kept for candidate in metadata.dropped_before):
        yield f"{name}: confuses kept and dropped candidates"
    if metadata.fingerprint != origin.fingerprint:
        yield f"{name}: fingerprint {metadata.fingerprint[:12]} instead of {origin.fingerprint[:12]}"
    if metadata.checkpoint_sha256 != origin.checkpoint_sha256:
        yield f"{name}: made by checkpoint {metadata.checkpoint_sha256[:12]}, not {origin.checkpoint_sha256[:12]}"
    if {len(metadata.channel_means), len(metadata.channel_square_means)} != {origin.image_shape.channels}:
        yield f"{name}: has {len(metadata.channel_means)} channels instead of {origin.image_shape.channels}"
    for candidate in (*metadata.dropped_before, metadata.candidate):
        yield from (f"{name}: {problem}" for problem in _class_problems(candidate, origin))


def _class_problems(candidate: Candidate, origin: ShardOrigin) -> Iterator[str]:
    shape = origin.image_shape
    if set(candidate.class_pixels) != {*origin.classes, "ignore"}:
        yield f"seed {candidate.seed} has classes {', '.join(candidate.class_pixels)}"
    elif sum(candidate.class_pixels.values()) != shape.num_pixels:
        yield f"the pixels of seed {candidate.seed} do not sum to {shape.width} x {shape.height}"


def _pixel_problems(sample: _PackedSample, origin: ShardOrigin) -> Iterator[str]:
    """Decode image and mask, and count the mask's pixels."""
    shape = origin.image_shape
    if not _is_image(_decoded(sample.image), shape, origin.image_format):
        yield f"{sample.image.name}: is no {shape.colours} image of {shape.size_in_words}"
    if DIGITAL_SOURCE_TYPE.encode() not in bytes(sample.image.data):
        yield f"{sample.image.name}: is not marked as made by an algorithm"
    mask_HW = _decoded_mask(sample.mask, shape)
    if mask_HW is None:
        yield f"{sample.mask.name}: is no 8-bit gray PNG of {shape.size_in_words}"
        return
    pixels = np.bincount(mask_HW.ravel(), minlength=IGNORE + 1)
    unknown = [int(value) for value in np.flatnonzero(pixels[:IGNORE]) if value >= len(origin.classes)]
    if unknown:
        yield f"{sample.mask.name}: holds {unknown}, which are no classes"
    counted = {name: int(pixels[value]) for value, name in enumerate(origin.classes)}
    if {**counted, "ignore": int(pixels[IGNORE])} != sample.metadata.candidate.class_pixels:
        yield f"{sample.mask.name}: its pixels are not those that {sample.metadata.key}.json counts"


def _is_image(pixels: NDArray[np.uint8] | None, shape: ImageShape, image_format: str) -> bool:
    if pixels is None or shape.channels == 3:
        return pixels is not None and pixels.shape == (*shape.size, 3)
    if image_format == "webp":  # which has no gray
        return pixels.shape == (*shape.size, 3) and bool((np.ptp(pixels, axis=2) <= 1).all())
    return pixels.shape == shape.size


def _decoded_mask(mask: Member, shape: ImageShape) -> NDArray[np.uint8] | None:
    # The header first: OpenCV would widen fewer bits and palettes, and a lie about the size could fill the memory.
    header = bytes(mask.data[:26])
    size = shape.width.to_bytes(4, "big") + shape.height.to_bytes(4, "big")
    if header[_PNG_SIZE] != size or header[_PNG_DEPTH_AND_COLOUR] != b"\x08\x00":
        return None
    pixels = _decoded(mask)
    return pixels if pixels is not None and pixels.shape == shape.size else None


def _decoded(member: Member) -> NDArray[np.uint8] | None:
    """8-bit pixels as they are stored, None where they cannot be read."""
    try:
        pixels = cv2.imdecode(np.frombuffer(member.data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:  # no bytes at all, or more pixels than OpenCV takes
        return None
    return pixels.astype(np.uint8, copy=False) if pixels is not None and pixels.dtype == np.uint8 else None
