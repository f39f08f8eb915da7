"""Whether a shard's tar is what its task and its run ask for, down to the pixels."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from labelmill.pipeline.pictures.class_maps import sum_problem, unstacked
from labelmill.pipeline.pictures.png import GRAY, Gray, decode_gray, read_png_header
from labelmill.pipeline.shards.reader import DamagedTarError, Member, members_in, parse_metadata
from labelmill.pipeline.shards.sample_files import (
    IMAGE,
    INSTANCES,
    MASK,
    METADATA,
    OPTIONAL_FILES,
    PROBABILITIES,
    SampleFile,
    sample_files,
)
from labelmill.pipeline.shards.writer import DIGITAL_SOURCE_TYPE
from labelmill.schemas.sample import IGNORE, Candidate, ImageShape, OptionalFile, SampleMetadata, sample_key
from labelmill.schemas.shard import ShardTask


@dataclass(frozen=True)
class ShardOrigin:
    """What every shard of a run must say of itself."""

    fingerprint: str
    checkpoint_sha256: str
    classes: tuple[str, ...]
    image_shape: ImageShape
    image_format: str
    optional_files: tuple[OptionalFile, ...] = ()

    @property
    def files(self) -> tuple[SampleFile, ...]:
        """What each sample consists of, in order."""
        return sample_files(self.image_format, self.optional_files)


@dataclass(frozen=True)
class _PackedSample:
    members: Mapping[str, Member]
    """By field of Sample."""
    metadata: SampleMetadata


def tar_problems(tar: bytes, task: ShardTask, origin: ShardOrigin, decoders: Executor | None) -> list[str]:
    """All that is wrong with a tar, one line each, empty if it is sound.

    decoders: threads that decode images and masks; None leaves pixels unread.
    """
    try:
        samples = list(_unpack(tar, origin.files))
    except DamagedTarError as error:
        return [str(error)]
    problems = [*_count_problems(samples, task)]
    for sample in samples:
        problems += _metadata_problems(sample.metadata, origin)
    if decoders is not None:
        for found in decoders.map(lambda sample: list(_pixel_problems(sample, origin)), samples):
            problems += found
    return problems


def _unpack(tar: bytes, files: Sequence[SampleFile]) -> Iterator[_PackedSample]:
    """Samples in order. Raises DamagedTarError where members are missing, strange or out of order."""
    members = list(members_in(tar))
    for start in range(0, len(members), len(files)):
        packed, key = members[start : start + len(files)], members[start].key
        found, expected = [member.name for member in packed], [file.member(key) for file in files]
        if found != expected:
            _check_optional(key, {member.name for member in members}, files)
            raise DamagedTarError(f"it holds {', '.join(found)} where {', '.join(expected)} should be")
        by_field = {file.field: member for file, member in zip(files, packed, strict=True)}
        yield _PackedSample(by_field, parse_metadata(by_field[METADATA.field]))


def _check_optional(key: str, names: set[str], files: Sequence[SampleFile]) -> None:
    """Raises DamagedTarError where a sample lacks an optional file of the dataset, or holds one that is none."""
    for file in OPTIONAL_FILES:
        if file in files and file.member(key) not in names:
            raise DamagedTarError(f"sample {key} lacks {file.member(key)}: the dataset declares {file.ending}")
        if file not in files and file.member(key) in names:
            raise DamagedTarError(f"sample {key} holds {file.member(key)}: the dataset does not declare {file.ending}")


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
    name = METADATA.member(metadata.key)
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
    """Decode image and gray pictures, and count the mask's pixels."""
    shape, image = origin.image_shape, sample.members[IMAGE.field]
    if not _is_image(_decoded(image), shape, origin.image_format):
        yield f"{image.name}: is no {shape.colours} image of {shape.size_in_words}"
    if DIGITAL_SOURCE_TYPE.encode() not in bytes(image.data):
        yield f"{image.name}: is not marked as made by an algorithm"
    for file in origin.files:
        if file.bit_depths:
            yield from _gray_problems(file, sample, origin)


def _gray_problems(file: SampleFile, sample: _PackedSample, origin: ShardOrigin) -> Iterator[str]:
    member, shape = sample.members[file.field], origin.image_shape
    num_maps = len(origin.classes) if file.is_per_class else 1
    pixels_HW = _decoded_gray(member, file, (num_maps * shape.height, shape.width))
    if pixels_HW is None:
        depths = " or ".join(f"{bits}-bit" for bits in file.bit_depths)
        maps = f"{num_maps} maps of " if file.is_per_class else ""
        yield f"{member.name}: is no {depths} gray PNG of {maps}{shape.size_in_words}"
    elif file == MASK:
        yield from _mask_problems(pixels_HW, sample, origin)
    elif file == INSTANCES and sample.metadata.instances is not None:
        listed = [instance.id for instance in sample.metadata.instances]
        if [int(number) for number in np.unique(pixels_HW) if number] != listed:
            yield f"{member.name}: its numbers are not those that {METADATA.member(sample.metadata.key)} lists"
    elif file == PROBABILITIES:
        problem = sum_problem(unstacked(pixels_HW.astype(np.uint8, copy=False), num_maps))
        if problem is not None:
            yield f"{member.name}: its maps {problem}"


def _mask_problems(mask_HW: Gray, sample: _PackedSample, origin: ShardOrigin) -> Iterator[str]:
    name = MASK.member(sample.metadata.key)
    pixels = np.bincount(mask_HW.ravel(), minlength=IGNORE + 1)
    unknown = [int(value) for value in np.flatnonzero(pixels[:IGNORE]) if value >= len(origin.classes)]
    if unknown:
        yield f"{name}: holds {unknown}, which are not classes"
    counted = {label: int(pixels[value]) for value, label in enumerate(origin.classes)}
    if {**counted, "ignore": int(pixels[IGNORE])} != sample.metadata.candidate.class_pixels:
        yield f"{name}: its pixels are not those that {METADATA.member(sample.metadata.key)} counts"


def _is_image(pixels: NDArray[np.uint8] | None, shape: ImageShape, image_format: str) -> bool:
    if pixels is None or shape.channels == 3:
        return pixels is not None and pixels.shape == (*shape.size, 3)
    if image_format == "webp":  # which has no gray
        return pixels.shape == (*shape.size, 3) and bool((np.ptp(pixels, axis=2) <= 1).all())
    return pixels.shape == shape.size


def _decoded_gray(member: Member, file: SampleFile, size: tuple[int, int]) -> Gray | None:
    # The header first: OpenCV would widen fewer bits and palettes, and a lie about the size could fill the memory.
    header = read_png_header(member.data)
    if header is None or (header.height, header.width) != size:
        return None
    if header.colour_type != GRAY or header.bit_depth not in file.bit_depths:
        return None
    pixels_HW = decode_gray(member.data)
    return pixels_HW if pixels_HW is not None and pixels_HW.shape == size else None


def _decoded(member: Member) -> NDArray[np.uint8] | None:
    """8-bit pixels as they are stored, None where they cannot be read."""
    try:
        pixels = cv2.imdecode(np.frombuffer(member.data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:  # no bytes at all, or more pixels than OpenCV takes
        return None
    return pixels.astype(np.uint8, copy=False) if pixels is not None and pixels.dtype == np.uint8 else None
