"""`labelmill annotate import`: files of other tools to the masks of a set. All of them, or nothing and what is wrong.

Shape suffixes: H, W height and width; C channels.
"""

import base64
import binascii
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import numpy as np

from labelmill.pipeline.annotations.formats.drawn import LARGEST_SIDE, Canvas, DrawnImage, Findings, Pixels
from labelmill.pipeline.annotations.formats.sources import find_sources
from labelmill.pipeline.annotations.formats.tell import Telling
from labelmill.pipeline.annotations.paint import paint
from labelmill.pipeline.annotations.read import nearest, raise_problems, read_description, read_mask
from labelmill.pipeline.annotations.write import image_sha256, write_description, write_mask
from labelmill.pipeline.pictures.png import decode_picture, read_png_header
from labelmill.schemas.annotations import LARGEST_SCALE, AnnotationSet, Rest, enlarged_path
from labelmill.schemas.cluster_mapping import IGNORED, MOST_CLASSES, is_class_name
from labelmill.schemas.sample import IGNORE, ImageShape

BACKGROUND = "background"
_MEANINGS = {"__ignore__": IGNORED, "_background_": BACKGROUND}
"""LabelMe's own labels."""
_TEN_DIGITS = re.compile(r"(?<!\d)\d{10}(?!\d)")
_MOST_EMBEDDED = 2**27
_SMALL_OVERLAP = 0.005


@dataclass(frozen=True)
class ImportSettings:
    """What a person says about the files."""

    classes: tuple[str, ...]
    """Of the set, the background first; empty: those that it has, or else those of the files."""
    rest: Rest
    stroke: int | None
    """Width of lines and points in pixels of the image that was drawn on; None: of one generator's pixel."""
    renamed: Mapping[str, str]
    """A class, or `ignore`, by the label in a file."""
    replace: bool
    """Whether other masks of the same images may be written over."""


@dataclass(frozen=True)
class Imported:
    """What an import wrote."""

    about: AnnotationSet
    masks: Mapping[str, Pixels]
    """Masks [H, W] by key."""
    notes: tuple[str, ...]
    """What people should know, one line each."""

    def lines(self) -> list[str]:
        """For people: what was imported, what they should know, and what is missing."""
        labeled = sum(int((mask_HW != IGNORE).sum()) for mask_HW in self.masks.values())
        pixels = self.about.image_shape.num_pixels * max(1, len(self.masks))
        count = f"{len(self.masks)} mask{'s' * (len(self.masks) != 1)}"
        lines = [*self.notes, f"{count} imported, {labeled / pixels:.1%} of their pixels labeled"]
        found = set[int]().union(*(np.unique(mask_HW).tolist() for mask_HW in self.masks.values()))
        if self.masks and 0 not in found:
            lines.append(f"no pixel is {self.about.classes[0]}: --rest background labels what no shape covers")
        return lines


def import_files(folder: Path, paths: Sequence[Path], settings: ImportSettings) -> Imported:
    """Read files, whatever their format, and write a mask for each image that they label.

    Raises ConfigError that lists everything wrong; nothing is written then.
    """
    about = read_description(folder)
    findings = Findings()
    pictures = _Pictures(about)
    telling = Telling(settings.classes or about.classes, pictures.holds, findings)
    own_masks = (folder / "masks").resolve()
    sources = [each for each in find_sources(paths, findings) if not each.is_below(own_masks)]
    telling.read_all(sources)
    drawn = dict(_by_key(telling.drawn, about, pictures, findings))
    about = _with_classes(about, telling, drawn, settings, findings)
    masks = dict(_masks(drawn, about, settings, findings)) if about.classes else {}
    if not telling.drawn and not findings.problems:
        findings.problems.append(f"no labels in {', '.join(map(str, paths))}")
    if not settings.replace:
        _refuse_others(folder, about, masks, findings)
    raise_problems(str(folder), findings.problems)
    write_description(folder, about)
    for key, mask_HW in masks.items():
        write_mask(folder, key, mask_HW)
    if telling.skipped:
        findings.notes.append(f"skipped {len(telling.skipped)} files without labels, such as {telling.skipped[0]}")
    return Imported(about, masks, tuple(findings.notes))


class _Pictures:
    """The set's own images, told by their pixels."""

    def __init__(self, about: AnnotationSet) -> None:
        self._shape = about.image_shape
        self._keys = {image.image_sha256: image.key for image in about.images}
        self._hashes = {image.key: image.image_sha256 for image in about.images}

    def holds(self, png: bytes) -> bool:
        """Whether a PNG is one of the images, at the generator's resolution or enlarged."""
        return self.key_of(png) is not None

    def key_of(self, png: bytes) -> str | None:
        """Key of the image that a PNG is; None for any other."""
        header = read_png_header(png)
        scale = fitting_scale((header.height, header.width), self._shape) if header is not None else None
        if scale is None:
            return None
        image_HWC = decode_picture(png, self._shape.channels)
        if image_HWC is None:
            return None
        return self._keys.get(image_sha256(image_HWC[scale // 2 :: scale, scale // 2 :: scale]))

    def contradicts(self, key: str, drawn: DrawnImage) -> bool:
        """Whether a file states or holds another image than the set's of that key. Of those it holds, only PNG are
        compared."""
        if drawn.image_sha256 is not None and drawn.image_sha256 != self._hashes[key]:
            return True
        embedded = drawn.embedded
        if embedded is None or len(embedded) > _MOST_EMBEDDED:
            return False
        try:
            png = base64.b64decode(embedded, validate=True)
        except (binascii.Error, ValueError):
            return False
        return read_png_header(png) is not None and self.key_of(png) != key


def fitting_scale(size: tuple[int, int], shape: ImageShape) -> int | None:
    """How many times larger a picture is than the generator's images; None if it is not a whole number of times."""
    scale = size[0] // shape.height
    fits = (
        max(size) <= LARGEST_SIDE
        and 1 <= scale <= LARGEST_SCALE
        and size == (shape.height * scale, shape.width * scale)
    )
    return scale if fits else None


def _by_key(
    drawn: Sequence[DrawnImage], about: AnnotationSet, pictures: _Pictures, findings: Findings
) -> Iterator[tuple[str, DrawnImage]]:
    """What was drawn on each image, in the set's order; files of one class each are joined."""
    found: dict[str, list[DrawnImage]] = {}
    known = set(about.keys)
    for each in drawn:
        name = file_name(each.picture)
        keys = [key for key in _TEN_DIGITS.findall(name) if key in known]
        if len(keys) != 1:
            findings.problems.append(
                f"{each.source}: labels {name!r}, which the set does not have; {nearest(name, about.keys)}"
            )
        elif pictures.contradicts(keys[0], each):
            findings.problems.append(
                f"{each.source}: was drawn on another picture than the set's {keys[0]}: of another checkpoint, other "
                f"settings, or changed"
            )
        elif _fits(each, keys[0], about, findings):
            found.setdefault(keys[0], []).append(each)
    for key in about.keys:
        files = found.get(key, [])
        if len(files) > 1 and not _are_one_mask(files):
            findings.problems.append(f"{key}: is labeled twice, in {' and in '.join(each.source for each in files)}")
        elif files:
            regions = tuple(region for each in files for region in each.regions)
            sources = files[0].source if len(files) == 1 else f"{files[0].source} and {len(files) - 1} more"
            yield key, DrawnImage(sources, files[0].picture, files[0].size, regions)


def file_name(picture: str) -> str:
    """The last part of a path or URL as annotation tools write it, without what follows a ?, which signs a URL. Label
    Studio's URLs of local files name them by `?d=`."""
    path = picture.partition("?d=")[2] or picture
    return re.split(r"[/\\]", unquote(re.split("[?&#]", path)[0]))[-1]


def _are_one_mask(files: Sequence[DrawnImage]) -> bool:
    """Whether files of one class each make up a mask: PNG of several classes, of one size."""
    labels = [region.label for each in files for region in each.regions]
    is_single = all(len(each.regions) == 1 and each.is_single for each in files)
    return is_single and len(set(labels)) == len(files) and len({each.size for each in files}) == 1


def _fits(drawn: DrawnImage, key: str, about: AnnotationSet, findings: Findings) -> bool:
    if fitting_scale(drawn.size, about.image_shape) is not None:
        return True
    scale = next(image.scale for image in about.images if image.key == key)
    height, width = about.image_shape.size
    findings.problems.append(
        f"{drawn.source}: was drawn on {drawn.size[1]} x {drawn.size[0]} pixels; {key} has {width} x {height}, or "
        f"{width * scale} x {height * scale} enlarged by {scale}: draw on {enlarged_path(key)}"
    )
    return False


def _with_classes(
    about: AnnotationSet,
    telling: Telling,
    drawn: Mapping[str, DrawnImage],
    settings: ImportSettings,
    findings: Findings,
) -> AnnotationSet:
    """The set with the classes that hold for these files."""
    labels = {renamed(region.label, settings) for each in drawn.values() for region in each.regions} - {IGNORED}
    classes = _classes(about, telling, labels, settings, findings)
    strange = [name for name in classes if not is_class_name(name)]
    findings.problems.extend(
        f"{name!r} cannot name a class: a letter, then letters, digits, spaces, - and _; --map {name}=NAME"
        for name in strange
    )
    if not classes or strange:
        return about
    try:
        return about.with_classes(classes, settings.rest)
    except ValueError:
        findings.problems.append(f"classes {', '.join(classes)}: a set needs two to {MOST_CLASSES}, each once")
        return about


def _classes(
    about: AnnotationSet, telling: Telling, labels: set[str], settings: ImportSettings, findings: Findings
) -> tuple[str, ...]:
    known = settings.classes or about.classes
    listed = set(telling.named.values())
    for source, names in telling.named.items():
        expected = known or next(iter(telling.named.values()))
        if names != expected[: len(names)]:
            findings.problems.append(
                f"{source}: lists the classes {', '.join(names)}; here they are {', '.join(expected)}"
            )
    if about.classes and known[: len(about.classes)] != about.classes:
        findings.problems.append(
            f"--classes {','.join(known)}: the set has {', '.join(about.classes)}, which its masks are numbered by; "
            f"give these first, or start a new set"
        )
        return ()
    if not known and listed:
        return max(listed, key=len)
    if not known:
        found = (BACKGROUND, *sorted(labels - {BACKGROUND}))
        findings.notes.append(f"classes as the files have them: {', '.join(found)}")
        return found
    return known


def renamed(label: str, settings: ImportSettings) -> str:
    """A class, or `ignore`, of a label as a file has it."""
    label = settings.renamed.get(label, label)
    return _MEANINGS.get(label, label)


def _masks(
    drawn: Mapping[str, DrawnImage], about: AnnotationSet, settings: ImportSettings, findings: Findings
) -> Iterator[tuple[str, Pixels]]:
    """Masks [H, W] by key, those that label nothing left out."""
    values = {name: index for index, name in enumerate(about.classes)} | {IGNORED: IGNORE}
    # A set may call its background otherwise; files that say background mean it.
    values.setdefault(BACKGROUND, 0)
    for key, each in drawn.items():
        labels = {region.label for region in each.regions}
        strange = sorted(label for label in labels if renamed(label, settings) not in values)
        for label in strange:
            close = difflib.get_close_matches(label, about.classes, n=1)
            hint = f"did you mean {close[0]}? --map {label}={close[0]}" if close else f"--map {label}=ignore"
            findings.problems.append(
                f"{each.source}: {label!r} is no class; they are {', '.join(about.classes)}, and {IGNORED}; {hint}"
            )
        scale = fitting_scale(each.size, about.image_shape)
        if strange or scale is None:
            continue
        canvas = Canvas(*each.size, scale=scale, stroke=settings.stroke or scale)
        indices = {label: values[renamed(label, settings)] for label in labels}
        painted = paint(each, canvas, indices, findings, rest_is_background=settings.rest == BACKGROUND)
        if painted.overlap > _SMALL_OVERLAP:
            findings.notes.append(
                f"{each.source}: shapes of different classes overlap in {painted.overlap:.1%} of what they cover; the "
                f"later one counts"
            )
        if (painted.mask_HW == IGNORE).all() and not settings.replace:  # to replace may be to erase
            findings.notes.append(f"{each.source}: labels no pixel; {key} is left out")
        else:
            yield key, painted.mask_HW


def _refuse_others(folder: Path, about: AnnotationSet, masks: Mapping[str, Pixels], findings: Findings) -> None:
    for key, mask_HW in masks.items():
        there_HW = read_mask(folder, about, key)
        if there_HW is not None and not np.array_equal(there_HW, mask_HW):
            findings.problems.append(f"{key}: has another mask already; --replace writes over it")
