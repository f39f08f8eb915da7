"""A dataset's samples as files for other programs: cutouts, whose alpha channel is how opaque the foreground is.

Shape suffixes: H height, W width, C the channels red, green, blue and alpha.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from labelmill.pipeline.dataset.manifest import read_index, read_manifest
from labelmill.pipeline.pictures.png import decode_gray, encode_cutout, read_png_header
from labelmill.pipeline.process.files import made_whole
from labelmill.pipeline.shards.reader import Member, members_in
from labelmill.pipeline.shards.sample_files import ALPHA, image_file
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
    shards, count = shards_to_export(store, folder, split), 0
    with made_whole(folder) as unfinished:
        unfinished.mkdir()
        for shard in shards:
            for key, cutout_HWC in _cutouts(store, shard, manifest):
                (unfinished / f"{key}.png").write_bytes(encode_cutout(cutout_HWC))
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


def _cutouts(store: Store, shard: IndexedShard, manifest: Manifest) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Keys and pixels [H, W, 4] of a shard's samples."""
    image_ending = image_file(manifest.image_format).ending
    images: dict[str, Member] = {}
    for member in members_in(checked_tar(store, shard)):
        if member.ending == image_ending:
            images[member.key] = member
        elif member.ending == ALPHA.ending:
            size = manifest.image_shape.size
            alpha_HW, image_HWC = _alpha(member, size), _image(images.pop(member.key, None), size)
            if alpha_HW is None or image_HWC is None:
                raise OutputError(f"{store.url}/{shard.url}: sample {member.key} is damaged; run `labelmill verify`")
            yield member.key, np.dstack([image_HWC, alpha_HW])


def _alpha(member: Member, size: tuple[int, int]) -> NDArray[np.uint8] | None:
    header = read_png_header(member.data)  # first: memory follows from the size that it states
    if header is None or (header.height, header.width) != size:
        return None
    alpha_HW = decode_gray(member.data)
    return None if alpha_HW is None or alpha_HW.dtype != np.uint8 else np.asarray(alpha_HW, np.uint8)


def _image(member: Member | None, size: tuple[int, int]) -> NDArray[np.uint8] | None:
    if member is None or not len(member.data):
        return None
    image = cv2.imdecode(np.frombuffer(member.data, np.uint8), cv2.IMREAD_COLOR_RGB)
    return None if image is None or image.shape[:2] != size else np.asarray(image, np.uint8)
