"""Which format a file is of, told by its content: what it is called says nothing about it.

Class names and colours that lie beside masks (`labelmap.txt`, `classes.json`) hold for the archive or folder that they
came with, so all other files are read before masks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic_core import from_json

from labelmill.pipeline.annotations.formats.click_page import is_click_page, read_click_page
from labelmill.pipeline.annotations.formats.coco import is_coco, read_coco
from labelmill.pipeline.annotations.formats.cvat import is_cvat, read_cvat
from labelmill.pipeline.annotations.formats.drawn import DrawnImage, Findings
from labelmill.pipeline.annotations.formats.label_studio import is_label_studio, read_label_studio
from labelmill.pipeline.annotations.formats.labelme import is_labelme, read_labelme
from labelmill.pipeline.annotations.formats.png_masks import Colour, parse_labelmap, read_png_mask
from labelmill.pipeline.annotations.formats.sources import Source
from labelmill.pipeline.pictures.png import read_png_header

JSON_READERS: tuple[tuple[Callable[[Any], bool], Callable[[Any, str, Findings], list[DrawnImage]]], ...] = (
    (is_labelme, read_labelme),
    (is_coco, read_coco),
    (is_label_studio, read_label_studio),
)
_KNOWN = (
    "LabelMe's JSON, COCO's JSON, Label Studio's JSON, CVAT's XML for images, PNG masks, or a zip archive of such files"
)


@dataclass
class Telling:
    """What was told of all files so far."""

    classes: Sequence[str]
    """Names of mask values where nothing beside the masks says otherwise."""
    is_picture: Callable[[bytes], bool]
    """Whether a PNG is one of the set's own images instead of labels."""
    findings: Findings
    drawn: list[DrawnImage] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    """Files of folders and archives that hold no labels."""
    named: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Classes by the `classes.json` that lists them."""
    _masks: list[Source] = field(default_factory=list)
    _classes_of: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _sha256_of: dict[str, dict[str, str]] = field(default_factory=dict)
    """Hashes of the images that masks were painted on, by collection and key."""
    _colours_of: dict[str, dict[Colour, str]] = field(default_factory=dict)

    def read_all(self, sources: Sequence[Source]) -> None:
        """Read every file; what is wrong goes to `findings`."""
        for source in sources:
            with self.findings.of(source.name):
                self._read(source, source.read())
        for source in self._masks:
            with self.findings.of(source.name):
                classes = self._classes_of.get(source.collection, self.classes)
                colours = self._colours_of.get(source.collection, {})
                drawn = read_png_mask(source.read(), source.name, source.stem, classes, colours)
                sha256 = self._sha256_of.get(source.collection, {}).get(source.stem)
                self.drawn.append(replace(drawn, image_sha256=sha256))

    def _read(self, source: Source, content: bytes) -> None:
        if read_png_header(content) is not None:
            if self.is_picture(content):
                self.skipped.append(source.name)
            else:
                self._masks.append(source)
        elif is_cvat(content):
            self.drawn += read_cvat(content, source.name, self.findings)
        elif (labelmap := parse_labelmap(content)) is not None:
            self._colours_of[source.collection] = labelmap
        elif content[:512].lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"["):
            self._read_json(source, content)
        else:
            self._unknown(source)

    def _read_json(self, source: Source, content: bytes) -> None:
        try:
            values = from_json(content.removeprefix(b"\xef\xbb\xbf"))
        except ValueError as error:
            self.findings.problems.append(f"{source.name}: is not JSON: {error}")
            return
        if isinstance(values, dict) and values.get("format") == "labelmill-annotations":
            self.skipped.append(source.name)
            return
        if is_click_page(values):
            page = read_click_page(values, source.name, self.findings)
            if page is None:
                return
            self._sha256_of[source.collection] = page.images
        classes = _class_list(values)
        if classes is not None:
            self._classes_of[source.collection] = self.named[source.name] = classes
            return
        for is_format, read in JSON_READERS:
            if is_format(values):
                self.drawn += read(values, source.name, self.findings)
                return
        self._unknown(source)

    def _unknown(self, source: Source) -> None:
        if source.collection:
            self.skipped.append(source.name)
        else:
            self.findings.problems.append(f"{source.name}: is of no known format; known are {_KNOWN}")


def _class_list(values: Any) -> tuple[str, ...] | None:
    """Names of mask values: a list of texts, or such a list under `classes`."""
    names = values.get("classes") if isinstance(values, dict) else values
    if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
        return tuple(names)
    return None
