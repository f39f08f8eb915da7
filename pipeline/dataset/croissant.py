"""A dataset described for machines: croissant.json, JSON-LD in the Croissant format 1.1."""

import json
import re
from collections.abc import Sequence

from labelmill.pipeline.shards.sample_files import IMAGE, METADATA, SampleFile, sample_files
from labelmill.schemas.manifest import Index, Manifest
from labelmill.schemas.sample import sample_key

Node = dict[str, object]

# As a glob: `*.png` would take masks for images.
_ANY_KEY = "?" * len(sample_key(0))
_MEDIA_TYPES = {"jpg": "image/jpeg", "json": "application/json", "png": "image/png", "webp": "image/webp"}

# The context that the format prescribes, word for word.
_CONTEXT: Node = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "description": {"@container": "@language"},
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "name": {"@container": "@language"},
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}


def croissant(manifest: Manifest, index: Index) -> bytes:
    """The JSON-LD of a dataset: its tars as files, images, masks and classes as records."""
    checkpoint = manifest.checkpoint
    archives = [shard.url for shard in index.shardlist]
    files = sample_files(manifest.image_format, manifest.optional_files)
    colours = "RGB" if manifest.image_shape.channels == 3 else "Gray"
    description = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.1",
        "name": manifest.name,
        "description": (
            f"{manifest.num_samples} synthetic images of {manifest.image_shape.size_in_words} with segmentation masks, "
            f"made by a StyleGAN2 generator."
        ),
        "keywords": ["synthetic", "semantic segmentation", *manifest.classes],
        "digitalSourceType": "https://schema.org/TrainedAlgorithmicMediaDigitalSource",
        "license": checkpoint.licence,
        "creditText": checkpoint.attribution or f"generator {checkpoint.reference}",
        "version": f"{manifest.format_version}.0.0",
        "distribution": [
            *(_archive(shard.url, shard.sha256, shard.filesize) for shard in index.shardlist),
            *(_members(file, archives) for file in files),
        ],
        "recordSet": [
            *(_files(file, colours) for file in files if file.field != METADATA.field),
            _classes(manifest.classes),
        ],
    }
    return json.dumps(description, indent=1).encode() + b"\n"


def _archive(url: str, sha256: str, num_bytes: int) -> Node:
    return {
        "@type": "cr:FileObject",
        "@id": url,
        "name": url,
        "contentUrl": url,
        "contentSize": f"{num_bytes} B",
        "encodingFormat": "application/x-tar",
        "sha256": sha256,
    }


def _file_set(file: SampleFile) -> str:
    return f"{file.name}-files"


def _members(file: SampleFile, archives: Sequence[str]) -> Node:
    return {
        "@type": "cr:FileSet",
        "@id": _file_set(file),
        "name": _file_set(file),
        "containedIn": [{"@id": archive} for archive in archives],
        "encodingFormat": _MEDIA_TYPES[file.ending.rpartition(".")[2]],
        "includes": file.member(_ANY_KEY),
    }


def _files(file: SampleFile, colours: str) -> Node:
    """A record per file: its key, which the files of a sample share, and its content."""
    name = f"{file.name.removesuffix('s')}s"
    description = colours if file.field == IMAGE.field else file.meaning
    data_type = ["sc:ImageObject", "cr:SegmentationMask"] if file.holds_indices else "sc:ImageObject"

    def field(column: str, text: str, column_type: str | list[str], extraction: Node) -> Node:
        return {
            "@type": "cr:Field",
            "@id": f"{name}/{column}",
            "name": column,
            "description": text,
            "dataType": column_type,
            "source": {"fileSet": {"@id": _file_set(file)}, **extraction},
        }

    pattern = rf"^(\d+)\.{re.escape(file.ending)}$"
    name_part: Node = {"extract": {"fileProperty": "filename"}, "transform": {"regex": pattern}}
    content: Node = {"extract": {"fileProperty": "content"}}
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "key": {"@id": f"{name}/key"},
        "field": [
            field("key", "The sample's seed, ten digits.", "sc:Text", name_part),
            field("content", f"{description}.", data_type, content),
        ],
    }


def _classes(classes: Sequence[str]) -> Node:
    columns = {"value": "sc:Integer", "name": "sc:Text"}
    return {
        "@type": "cr:RecordSet",
        "@id": "classes",
        "name": "classes",
        "dataType": "sc:Enumeration",
        "key": {"@id": "classes/value"},
        "field": [
            {"@type": "cr:Field", "@id": f"classes/{column}", "name": column, "dataType": data_type}
            for column, data_type in columns.items()
        ],
        "data": [{"classes/value": value, "classes/name": name} for value, name in enumerate(classes)],
    }
