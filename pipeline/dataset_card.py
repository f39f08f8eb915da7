"""A dataset described for people (README.md with Hugging Face's header) and for machines (croissant.json)."""

import json

import jinja2

from schemas.manifest import Index, Manifest

# Upper ends of Hugging Face's size categories.
_SIZE_CATEGORIES = [(10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M")]
_LARGEST_CATEGORY = "n>1M"

CARD = """\
---
license: other
license_name: {{ manifest.checkpoint.licence | tojson }}
task_categories: [image-segmentation]
tags: [synthetic, webdataset, labelmill]
size_categories: [{{ size_category | tojson }}]
configs:
- config_name: default
  data_files:
{%- for split, urls in splits.items() %}
  - split: {{ split }}
    path:
{%- for url in urls %}
    - {{ url }}
{%- endfor %}
{%- endfor %}
---

# {{ manifest.name }}

{{ manifest.num_samples }} synthetic images of {{ manifest.resolution }} x {{ manifest.resolution }} pixels, each \
with a segmentation mask, in {{ manifest.num_shards }} WebDataset shards. Images and masks were made by an algorithm \
([labelmill](https://pypi.org/project/labelmill/)); no person drew or checked a single one.

| | |
|---|---|
| classes | {% for name in manifest.classes %}{{ loop.index0 }} {{ name }}, {% endfor %}255 ignore |
| samples by split | {% for split, count in manifest.samples_by_split.items() %}{{ split }} {{ count }}{{ ", " if not \
loop.last }}{% endfor %} |
| labeling method | {{ manifest.config.labeler.method }} |
| candidates tried | {{ manifest.num_candidates }} |
| dropped | {% for reason, count in manifest.dropped_by_reason.items() %}{{ reason }} {{ count }}{{ ", " if not \
loop.last }}{% else %}none{% endfor %} |
| mean of red, green, blue | {{ manifest.mean | join(", ") }} |
| standard deviation | {{ manifest.std | join(", ") }} |
| generator | {{ manifest.checkpoint.reference }}, {{ manifest.checkpoint.format }}, sha256 \
`{{ manifest.checkpoint.sha256 }}` |
| licence of the generator | {{ manifest.checkpoint.licence }} |
{%- if manifest.checkpoint.attribution %}
| attribution | {{ manifest.checkpoint.attribution }} |
{%- endif %}
| fingerprint | `{{ manifest.fingerprint }}` |

## Load it

Each sample is `KEY.{{ manifest.image_format }}`, `KEY.mask.png` (8-bit gray: a pixel is a class index) and \
`KEY.json`. `index.json` lists the shards of each split with their hashes.

```python
import cv2
import numpy as np
import webdataset as wds

def gray(data):
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)

pairs = (
    wds.WebDataset({{ shards | tojson }}, shardshuffle=False)
    .decode(wds.handle_extension("mask.png", gray), "rgb8")
    .to_tuple("{{ manifest.image_format }}", "mask.png")
)
```

```python
from datasets import load_dataset

data = load_dataset("webdataset", data_files="shards/*.tar", streaming=True)
```
"""


def dataset_card(manifest: Manifest, index: Index) -> str:
    """The README.md of a dataset."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=True)
    last = manifest.num_shards - 1
    return environment.from_string(CARD).render(
        manifest=manifest,
        splits={split: urls for split, urls in index.splits.items() if urls},
        shards=f"shards/{manifest.name}-{{000000..{last:06d}}}.tar",
        size_category=next(
            (name for limit, name in _SIZE_CATEGORIES if manifest.num_samples < limit), _LARGEST_CATEGORY
        ),
    )


def croissant(manifest: Manifest, index: Index) -> bytes:
    """The JSON-LD of a dataset (Croissant 1.1): the shards as files, image and mask as fields."""
    description = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.1",
        "name": manifest.name,
        "description": f"{manifest.num_samples} synthetic images with segmentation masks.",
        "license": manifest.checkpoint.licence,
        "version": f"{manifest.format_version}.0.0",
        "distribution": [_archive(shard.url, shard.sha256, shard.filesize) for shard in index.shardlist]
        + [_members(shard.url, manifest.image_format) for shard in index.shardlist],
        "recordSet": [_record_set(manifest, index)],
    }
    return json.dumps(description, indent=1).encode() + b"\n"


def _archive(url: str, sha256: str, num_bytes: int) -> dict[str, object]:
    return {
        "@type": "cr:FileObject",
        "@id": url,
        "name": url,
        "contentUrl": url,
        "contentSize": f"{num_bytes} B",
        "encodingFormat": "application/x-tar",
        "sha256": sha256,
    }


def _members(url: str, image_format: str) -> dict[str, object]:
    return {
        "@type": "cr:FileSet",
        "@id": f"{url}#members",
        "name": f"{url}#members",
        "containedIn": {"@id": url},
        "encodingFormat": ["image/png", f"image/{image_format.replace('jpg', 'jpeg')}", "application/json"],
        "includes": [f"*.{image_format}", "*.mask.png", "*.json"],
    }


def _record_set(manifest: Manifest, index: Index) -> dict[str, object]:
    def field(name: str, text: str, pattern: str, data_type: str) -> dict[str, object]:
        return {
            "@type": "cr:Field",
            "@id": f"samples/{name}",
            "name": name,
            "description": text,
            "dataType": data_type,
            "source": {
                "fileSet": {"@id": f"{index.shardlist[0].url}#members"},
                "extract": {"fileProperty": "content"},
                "transform": {"regex": pattern},
            },
        }

    classes = ", ".join(f"{number} {name}" for number, name in enumerate(manifest.classes))
    return {
        "@type": "cr:RecordSet",
        "@id": "samples",
        "name": "samples",
        "field": [
            field("image", "RGB image.", rf".*\.{manifest.image_format}$", "sc:ImageObject"),
            field("mask", f"8-bit gray mask: {classes}, 255 ignore.", r".*\.mask\.png$", "sc:ImageObject"),
            field("metadata", "Seed, scores, provenance.", r".*\.json$", "sc:Text"),
        ],
    }


_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "conformsTo": "dct:conformsTo",
    "dct": "http://purl.org/dc/terms/",
    "containedIn": "cr:containedIn",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "includes": "cr:includes",
    "recordSet": "cr:recordSet",
    "regex": "cr:regex",
    "source": "cr:source",
    "transform": "cr:transform",
}
