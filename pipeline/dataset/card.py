"""A dataset described for people: README.md, with the header that Hugging Face reads."""

import html
import re
from pathlib import Path

import jinja2

from labelmill.pipeline.shards.sample_files import sample_files
from labelmill.schemas.manifest import Index, Manifest

_TEMPLATE = Path(__file__).with_name("card.md.j2")
# Upper ends of Hugging Face's size categories.
_SIZE_CATEGORIES = [(10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M")]
_LARGEST_CATEGORY = "n>1M"
# Licences that checkpoints state and Hugging Face knows by this name; others go by the text in the card.
_KNOWN_LICENCES = re.compile(r"apache-2\.0|mit|bsd-[23]-clause|unlicense|cc0-1\.0|cc-by(-nc)?(-sa|-nd)?-[34]\.0")

_MARKUP = re.compile(r"[\\`*_\[\]|~!]")
_LONGEST_WORDS = 2000


def dataset_card(manifest: Manifest, index: Index) -> str:
    """The README.md of a dataset."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=True)
    environment.filters |= {"plain": _plain, "code": _code}
    licence = manifest.checkpoint.licence.lower()
    num_pixels = sum(manifest.class_pixels.values())
    files = sample_files(manifest.image_format, manifest.optional_files)
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        manifest=manifest,
        files=files,
        gray_files=[file for file in files if file.bit_depths],
        licence_id=licence if _KNOWN_LICENCES.fullmatch(licence) else None,
        class_shares=[manifest.class_pixels.get(name, 0) / num_pixels for name in manifest.classes],
        splits={split: urls for split, urls in index.splits.items() if urls},
        size_category=next(
            (name for limit, name in _SIZE_CATEGORIES if manifest.num_samples < limit), _LARGEST_CATEGORY
        ),
    )


def _plain(text: str) -> str:
    """Words of a stranger as one line of Markdown that shows them and does nothing else: neither markup nor HTML."""
    line = " ".join(text.split())
    cut = line if len(line) <= _LONGEST_WORDS else f"{line[:_LONGEST_WORDS]}..."
    return html.escape(_MARKUP.sub(r"\\\g<0>", cut), quote=False)


def _code(text: str) -> str:
    """The same between two `, where everything but a ` is shown as it is."""
    return " ".join(text.replace("`", "'").split())
