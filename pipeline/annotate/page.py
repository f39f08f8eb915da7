"""`labelmill annotate page`: one HTML file in which people paint masks, by segments and by brush.

The file holds all that it needs: images, segments, masks so far, style and script, which its security policy allows by
hash and nothing else. `labelmill annotate import` reads the zip archive that it downloads.

Shape suffixes: N images, H height, W width.
"""

import base64
import hashlib
import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from labelmill.pipeline.annotate.segments import LEVELS, Labels, layers_of, main_directions, segment_maps
from labelmill.pipeline.annotations.read import Annotations, read_whole_set
from labelmill.pipeline.annotations.regenerate import check_checkpoint, regenerate
from labelmill.pipeline.generator.sampling import Sampler
from labelmill.pipeline.pictures.overlay import class_colours
from labelmill.pipeline.pictures.png import encode_picture
from labelmill.pipeline.process.device import repeatable_kernels
from labelmill.pipeline.process.files import write_atomically
from labelmill.schemas.annotations import AnnotationSet
from labelmill.schemas.errors import ConfigError
from labelmill.schemas.fingerprint import canonical_json
from labelmill.schemas.sample import IGNORE

PAGE_FILE = "page.html"
MOST_PIXELS = 2**25
"""Of all images together: 8,192 of 64 px, 32 of 1024 px."""
_UNSAID = 256
"""What the page calls a pixel that nobody has labeled yet; `ignore`, which people may paint, is IGNORE."""


def write_page(folder: Path, about: AnnotationSet, sampler: Sampler, checkpoint_sha256: str) -> None:
    """Write the page of a set's images into its folder.

    about: the set's description, with classes; `check_size` has passed it. Raises ConfigError: for another checkpoint,
    images that come out differently, or a set that is damaged.
    """
    annotations = read_whole_set(folder, about)
    check_checkpoint(annotations, checkpoint_sha256)
    with repeatable_kernels():
        maps = list(_encoded_maps(annotations, sampler, checkpoint_sha256))
    write_atomically(folder / PAGE_FILE, render(folder.resolve().name, annotations, maps).encode())


def check_size(folder: Path, about: AnnotationSet) -> None:
    """Raises ConfigError for more images than a browser shows well."""
    most = MOST_PIXELS // about.image_shape.num_pixels
    if len(about.images) > most:
        raise ConfigError(
            f"{folder}: has {len(about.images)} images of {about.image_shape.size_in_words}; one page holds at most "
            f"{most}: pick fewer, into several sets"
        )


def _encoded_maps(annotations: Annotations, sampler: Sampler, checkpoint_sha256: str) -> Iterator[list[str]]:
    """Per image its segments at each level, as `runs` has them. Images are made twice: no features are kept."""
    spec = sampler.generator.spec
    directions = main_directions(regenerate(annotations, sampler, layers_of(spec), checkpoint_sha256), spec)
    batches = regenerate(annotations, sampler, directions.layers, checkpoint_sha256)
    for levels in chain.from_iterable(segment_maps(batch, directions, spec) for batch in batches):
        yield [runs(segments_HW) for segments_HW in levels]


def render(folder: str, annotations: Annotations, maps: list[list[str]]) -> str:
    """The page. folder: the set's name for people. maps: segments per image and level, as `runs` has them."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("labelmill.pipeline.annotate", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = Path(__file__).with_name("page.js").read_text(encoding="utf-8")
    values = _values(folder, annotations, maps)
    return environment.get_template("page.html.j2").render(
        folder=folder,
        images=values["images"],
        classes=values["classes"],
        levels=values["levels"],
        # Nothing in a set may end the element that it stands in.
        data=Markup(json.dumps(values).replace("<", "\\u003c")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _values(folder: str, annotations: Annotations, maps: list[list[str]]) -> dict[str, Any]:
    """What the page's script reads."""
    about = annotations.about
    colours = class_colours(len(about.classes))
    return {
        "set": set_sha256(about),
        "folder": folder,
        "height": about.image_shape.height,
        "width": about.image_shape.width,
        "levels": [level.name for level in LEVELS],
        "classes": [
            {"name": name, "colour": f"#{bytes(colour).hex()}"}
            for name, colour in zip(about.classes, colours, strict=True)
        ],
        "images": [
            {
                "key": image.key,
                "sha256": image.image_sha256,
                "image": f"data:image/png;base64,{base64.b64encode(encode_picture(image_HWC)).decode()}",
                "segments": levels,
                "mask": runs(np.where(mask_HW == IGNORE, _UNSAID, mask_HW.astype(np.int32))),
                "base": hashlib.sha256(mask_HW.tobytes()).hexdigest(),
            }
            for image, image_HWC, mask_HW, levels in zip(
                annotations.images, annotations.images_NHWC, annotations.masks_NHW, maps, strict=True
            )
        ],
    }


def set_sha256(about: AnnotationSet) -> str:
    """Over what makes a set's masks what they mean: its images and the names of its classes."""
    hashes = {image.key: image.image_sha256 for image in about.images}
    return hashlib.sha256(canonical_json({"classes": about.classes, "images": hashes})).hexdigest()


def runs(values_HW: Labels) -> str:
    """Numbers row by row as runs of equal ones: value and length, each in bytes of seven bits, the lowest first, all
    but the last with the eighth bit set; in base64."""
    values_P = values_HW.ravel()
    starts = np.flatnonzero(np.diff(values_P, prepend=values_P[0] - 1))
    lengths = np.diff(starts, append=values_P.size)
    packed = bytearray()
    for value, length in zip(values_P[starts].tolist(), lengths.tolist(), strict=True):
        packed += _seven_bits(value) + _seven_bits(length)
    return base64.b64encode(packed).decode()


def _seven_bits(number: int) -> bytes:
    packed = bytearray()
    while number > 127:
        packed.append(number & 127 | 128)
        number >>= 7
    packed.append(number)
    return bytes(packed)
