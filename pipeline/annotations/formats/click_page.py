"""The archive that the page of `labelmill annotate page` downloads: `masks/KEY.png` of class indices, and
`classes.json`, which says which classes these are and which images they were painted on."""

from typing import Any, Literal

from pydantic import BaseModel

from labelmill.pipeline.annotations.formats.drawn import Findings
from labelmill.pipeline.annotations.formats.parsed import parsed

FORMAT = "labelmill-page"


class ClickPage(BaseModel):
    """`classes.json`."""

    format: Literal["labelmill-page"]
    version: Literal[1]
    classes: list[str]
    """Names of the values 0, 1, ..."""
    images: dict[str, str]
    """SHA-256 of the pixels that were painted on, by key."""


def is_click_page(values: Any) -> bool:
    """Whether a JSON file says that it is of the page."""
    return isinstance(values, dict) and values.get("format") == FORMAT


def read_click_page(values: Any, source: str, findings: Findings) -> ClickPage | None:
    """What the file says; None, with problems, where it is damaged or of a later version."""
    return parsed(ClickPage, values, source, findings)
