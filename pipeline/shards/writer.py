"""Samples into a shard: encode in threads, then pack into a tar in memory."""

import io
import json
import struct
import zlib
from collections import deque
from collections.abc import Collection, Sequence
from concurrent.futures import Executor, Future
from typing import Any

import cv2
import numpy as np
import webdataset
from numpy.typing import NDArray

from labelmill.pipeline.pictures.class_maps import stacked
from labelmill.pipeline.pictures.png import HEADER_BYTES, encode_gray, encode_picture
from labelmill.pipeline.shards.sample_files import IMAGE, METADATA, SAMPLE_FILES, SampleFile, sample_files
from labelmill.schemas.sample import Sample, SampleMetadata, sample_key

# Samples encoded ahead of the tar: enough to keep the threads busy, little enough to hold in memory.
_MAX_IN_FLIGHT = 32
_MAX_BYTES_IN_FLIGHT = 2**28

DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
_XMP = f"""\
<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
 Iptc4xmpExt:DigitalSourceType="{DIGITAL_SOURCE_TYPE}"/>
</rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>""".encode()
# A JPEG's APP1 segment is told to be XMP by this name (XMP specification part 3); OpenCV leaves it out.
_JPEG_XMP_NAME = b"http://ns.adobe.com/xap/1.0/\0"

# Names and contents of one sample's members.
_Members = list[tuple[str, bytes]]


class ShardWriter:
    """Builds one shard. Samples keep their order, and equal samples give equal bytes."""

    def __init__(
        self, image_format: str, image_quality: int, threads: Executor, optional_files: Collection[str] = ()
    ) -> None:
        """optional_files: endings of those that each of the samples has."""
        # OpenCV's own threads would compete with those that encode. The setting holds for the process.
        cv2.setNumThreads(1)
        self._files = sample_files(image_format, optional_files)
        self._image_quality = image_quality
        self._threads = threads
        self.num_samples = 0
        """Samples added so far."""
        self._encoding: deque[Future[_Members]] = deque()
        self._encoded: deque[_Members] = deque()

    def add(self, sample: Sample) -> None:
        """Start encoding a sample; waits while too many are being encoded.

        The sample's arrays must not change afterwards. Raises what encoding an earlier sample raised.
        """
        self._encoding.append(self._threads.submit(_members, sample, self._files, self._image_quality))
        self.num_samples += 1
        most = _most_in_flight(sample)
        while self._encoding and (len(self._encoding) > most or self._encoding[0].done()):
            self._collect_oldest()

    def finish(self) -> bytes:
        """The whole tar; the writer is spent. Raises what encoding raised: a shard never lacks a sample in silence."""
        while self._encoding:
            self._collect_oldest()
        assert len(self._encoded) == self.num_samples, "a writer finishes once"
        stream = io.BytesIO()
        with webdataset.TarWriter(stream, mtime=0, encoder=False) as tar:
            while self._encoded:  # let go of one by one, so that the shard is not twice in memory
                for name, data in self._encoded.popleft():
                    key, ending = name.split(".", 1)
                    # One call a member: TarWriter sorts the endings within a call.
                    tar.write({"__key__": key, ending: data})
        return stream.getvalue()

    def _collect_oldest(self) -> None:
        members = self._encoding[0].result()  # a failed one stays first, so that `finish` fails too
        self._encoding.popleft()
        self._encoded.append(members)


def encode_image(image_HWC: NDArray[np.uint8], image_format: str, quality: int) -> bytes:
    """RGB or gray HWC uint8 as jpg (4:4:4), png or webp, marked as made by a trained algorithm (IPTC, in XMP).

    Gray images have one channel in the file, too, but for webp, which has no such: there decoders give three that
    differ by one level at most.
    """
    if image_format == "png":
        # OpenCV writes XMP as tEXt, where readers do not look for it.
        png = encode_picture(image_HWC)
        return png[:HEADER_BYTES] + _png_xmp_chunk() + png[HEADER_BYTES:]
    is_gray = image_HWC.shape[2] == 1
    conversion = cv2.COLOR_GRAY2BGR if is_gray else cv2.COLOR_RGB2BGR
    plain = is_gray and image_format != "webp"
    pixels = image_HWC[:, :, 0] if plain else cv2.cvtColor(np.ascontiguousarray(image_HWC), conversion)
    if image_format == "jpg":
        xmp, sampling = _JPEG_XMP_NAME + _XMP, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444
        parameters = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
    else:
        assert image_format == "webp", image_format
        xmp, parameters = _XMP, [cv2.IMWRITE_WEBP_QUALITY, quality]
    metadata = [np.frombuffer(xmp, np.uint8)]
    done, encoded = cv2.imencodeWithMetadata(f".{image_format}", pixels, [cv2.IMAGE_METADATA_XMP], metadata, parameters)
    assert done, f"OpenCV cannot write {image_format}"
    return bytes(encoded.tobytes())


def encode_metadata(metadata: SampleMetadata) -> bytes:
    """JSON without spaces, keys in the order that labelmill.schemas.sample declares: classes stay in mask order."""
    return json.dumps(metadata.model_dump(mode="json"), separators=(",", ":"), allow_nan=False).encode()


def _most_in_flight(sample: Sample) -> int:
    """How many samples of this size may wait to be encoded: fewer where they are large, as with many maps."""
    num_bytes = sum(value.nbytes for value in vars(sample).values() if isinstance(value, np.ndarray))
    return max(1, min(_MAX_IN_FLIGHT, _MAX_BYTES_IN_FLIGHT // num_bytes))


def _members(sample: Sample, files: Sequence[SampleFile], quality: int) -> _Members:
    _check(sample, files)
    return [(file.member(sample.key), _content(sample, file, quality)) for file in files]


def _content(sample: Sample, file: SampleFile, quality: int) -> bytes:
    if file.bit_depths:
        pixels: Any = getattr(sample, file.field)
        pixels_HW: Any = stacked(pixels) if file.is_per_class else pixels
        depth = next(bits for bits in file.bit_depths if pixels_HW.max() < 2**bits)
        return encode_gray(pixels_HW.astype(np.uint8 if depth == 8 else np.uint16, copy=False))
    if file.field == METADATA.field:
        return encode_metadata(sample.metadata)
    assert file.field == IMAGE.field, file
    return encode_image(sample.image_HWC, file.ending, quality)


def _png_xmp_chunk() -> bytes:
    # Keyword, uncompressed, no language, no translated keyword (PNG specification, 11.3.3.4).
    body = b"iTXt" + b"XML:com.adobe.xmp\0" + b"\0\0\0\0" + _XMP
    return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))


def _check(sample: Sample, files: Sequence[SampleFile]) -> None:
    image_HWC, metadata = sample.image_HWC, sample.metadata
    assert image_HWC.dtype == np.uint8 and image_HWC.ndim == 3 and image_HWC.shape[2] in (1, 3), image_HWC.shape
    for file in SAMPLE_FILES:
        value = getattr(sample, file.field)
        if file.is_optional and (value is None) == (file in files):
            fault = "declares but does not give it" if value is None else "gives but does not declare it"
            raise AssertionError(f"{file.ending}: the labeler {fault} (optional_files)")
        if file.bit_depths and value is not None:
            widest = np.uint16 if file.bit_depths[-1] == 16 else np.uint8
            shape = (*((len(metadata.candidate.classes),) if file.is_per_class else ()), *image_HWC.shape[:2])
            assert value.dtype == widest and value.shape == shape, (file.field, value.dtype, value.shape)
    assert sample.key == metadata.key == sample_key(metadata.candidate.seed), sample.key
