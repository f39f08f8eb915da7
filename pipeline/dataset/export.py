"""A dataset's samples as files for other programs and for eyes: cutouts, whose alpha channel is how opaque the
foreground is, and overlays, images tinted by their masks.

Shape suffixes: H height, W width, C the channels red, green, blue and alpha.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from labelmill.pipeline.dataset.manifest import read_index, read_manifest
from labelmill.pipeline.pictures.overlay import Pixels, class_colours, overlay
from labelmill.pipeline.pictures.png import decode_gray, encode_cutout, encode_picture, read_png_header
from labelmill.pipeline.process.files import made_whole
from labelmill.pipeline.shards.reader import Member, members_in
from labelmill.pipeline.shards.sample_files import ALPHA, MASK, SampleFile, image_file, sample_files
from labelmill.pipeline.store.store import Store
from labelmill.schemas.errors import OutputError
from labelmill.schemas.manifest import IndexedShard, Manifest


def export_cutouts(store: Store, folder: Path, split: str | None) -> int:
    """Write KEY.png, RGB with alpha, for every sample of a split (None: of all) into a new folder, and count them.

    The folder appears when all files are in it; a shard is in memory at a time. Raises OutputError for a dataset
    without alpha, a shard that is not what the index says, and a folder that is there already.
    """
    manifest = read_manifest(store)
    if ALPHA.ending not in manifest.optional_files:
        raise OutputError(
            f"{store.url}: its samples have no {ALPHA.ending}, which cutouts need; label with labeler.method: "
            f"alpha_network"
        )
    return _export_pictures(store, manifest, folder, split, ALPHA, lambda *pair: encode_cutout(np.dstack(pair)))


def export_overlays(store: Store, folder: Path, split: str | None) -> int:
    """Write KEY.png, the image tinted by its mask, for every sample of a split (None: of all) into a new folder, and
    count them. Behaves as `export_cutouts` does."""
    manifest = read_manifest(store)
    colours = class_colours(len(manifest.classes))

    def encode(image_HWC: Pixels, mask_HW: Pixels) -> bytes:
        return encode_picture(overlay(image_HWC, mask_HW, colours))

    return _export_pictures(store, manifest, folder, split, MASK, encode)


def _export_pictures(
    store: Store,
    manifest: Manifest,
    folder: Path,
    split: str | None,
    file: SampleFile,
    encode: Callable[[Pixels, Pixels], bytes],
) -> int:
    """Write what `encode` makes of each image and its file of a kind; how many that were."""
    shards, count = shards_to_export(store, folder, split), 0
    with made_whole(folder) as unfinished:
        unfinished.mkdir()
        for shard in shards:
            for key, image_HWC, gray_HW in _pairs(store, shard, manifest, file):
                (unfinished / f"{key}.png").write_bytes(encode(image_HWC, gray_HW))
                count += 1
    return count


def shards_to_export(store: Store, folder: Path, split: str | None) -> list[IndexedShard]:
    """Shards with samples of a split (None: of all). Raises OutputError where there are none, and for a folder that is
    there already."""
    index = read_index(store)
    shards = [shard for shard in index.shardlist if split in (None, shard.split) and shard.nsamples]
    if not shards:
        raise OutputError(f"{store.url}: no sample in split {split!r}; it has {', '.join(index.splits)}")
    if folder.exists():
        raise OutputError(f"{folder}: is there already; choose a new folder, or remove it")
    return shards


def checked_tar(store: Store, shard: IndexedShard) -> bytes:
    """A shard's tar. Raises OutputError where it is not the one that the index lists."""
    tar = store.read(shard.url)
    if hashlib.sha256(tar).hexdigest() != shard.sha256:
        raise OutputError(f"{store.url}/{shard.url}: is not the shard that the index lists; run `labelmill verify`")
    return tar


def unpacked(store: Store, shard: IndexedShard, manifest: Manifest) -> Iterator[dict[str, Member]]:
    """Members of each of a shard's samples, by field of Sample."""
    files = sample_files(manifest.image_format, manifest.optional_files)
    members = list(members_in(checked_tar(store, shard)))
    for start in range(0, len(members), len(files)):
        yield dict(zip((file.field for file in files), members[start : start + len(files)], strict=True))


def pixels_of(member: Member, size: tuple[int, int]) -> NDArray[np.uint16]:
    """[H, W] of a gray PNG. Raises ValueError for what is none of the dataset's size."""
    header = read_png_header(member.data)  # first: memory follows from the size that it states
    pixels_HW = decode_gray(member.data) if header and (header.height, header.width) == size else None
    if pixels_HW is None:
        raise ValueError(f"{member.name} is damaged")
    return pixels_HW.astype(np.uint16)


def _pairs(
    store: Store, shard: IndexedShard, manifest: Manifest, file: SampleFile
) -> Iterator[tuple[str, Pixels, Pixels]]:
    """Keys, images [H, W, 3] and files of a kind [H, W] of a shard's samples."""
    image_ending = image_file(manifest.image_format).ending
    images: dict[str, Member] = {}
    for member in members_in(checked_tar(store, shard)):
        if member.ending == image_ending:
            images[member.key] = member
        elif member.ending == file.ending:
            size = manifest.image_shape.size
            gray_HW, image_HWC = _gray(member, size), _image(images.pop(member.key, None), size)
            if gray_HW is None or image_HWC is None:
                raise OutputError(f"{store.url}/{shard.url}: sample {member.key} is damaged; run `labelmill verify`")
            yield member.key, image_HWC, gray_HW


def _gray(member: Member, size: tuple[int, int]) -> Pixels | None:
    header = read_png_header(member.data)  # first: memory follows from the size that it states
    if header is None or (header.height, header.width) != size:
        return None
    gray_HW = decode_gray(member.data)
    return None if gray_HW is None or gray_HW.dtype != np.uint8 else np.asarray(gray_HW, np.uint8)


def _image(member: Member | None, size: tuple[int, int]) -> Pixels | None:
    if member is None or not len(member.data):
        return None
    image = cv2.imdecode(np.frombuffer(member.data, np.uint8), cv2.IMREAD_COLOR_RGB)
    return None if image is None or image.shape[:2] != size else np.asarray(image, np.uint8)
