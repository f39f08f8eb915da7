"""A trained network as ONNX, for runtimes that know no PyTorch."""

import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from labelmill.pipeline.networks.segmenter import Segmenter
from labelmill.pipeline.process.files import write_atomically
from labelmill.schemas.errors import ConfigError, LabelmillError
from labelmill.schemas.segmentation import SegmentationModelCard

OPSET = 18
# (batch, height, width): what the graph is traced with, and two others that it is checked with. None but the second is
# divided by the stride, so that padding and cutting depend on the size as they do in the network.
_TRACED, _CHECKED = (2, 40, 56), ((3, 64, 32), (1, 33, 70))
_TOLERANCE = 1e-3


class ExportError(LabelmillError):
    """The exported file does not do what the network does."""


def export_onnx(segmenter: Segmenter, card: SegmentationModelCard, path: Path) -> float:
    """Write a network, in eval mode on the CPU, as ONNX; the largest difference of logits to PyTorch's.

    Input `images`: float32 [batch, 3, height, width], RGB in [0, 1], of any size; masks are best where the shorter side
    is that of the images that it learned from. Output `logits`: float32 [batch, classes, height, width]. Normalisation
    is inside, and so is the way from colours to gray of one that learned from gray images. Classes, and the height and
    width that it learned from, stand in the file's metadata. The file is run by onnxruntime on random images of other
    sizes than it was traced with before it appears. Raises ConfigError without the extra `onnx`, ExportError where the
    logits differ.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise ConfigError(f"export needs onnx and onnxruntime ({error}): pip install 'labelmill[onnx]'") from error
    model = onnx.load_from_string(_traced(segmenter))
    learned = card.image_shape
    properties = {"classes": ",".join(card.classes), "height": str(learned.height), "width": str(learned.width)}
    onnx.helper.set_model_props(model, properties)
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    random, largest = np.random.default_rng(0), 0.0
    for batch, height, width in _CHECKED:
        images = random.random((batch, 3, height, width), np.float32)
        (found,) = session.run(["logits"], {"images": images})
        with torch.no_grad():
            expected = segmenter(torch.from_numpy(images)).numpy()
        difference = float(np.abs(found - expected).max()) if found.shape == expected.shape else float("inf")
        if not difference <= _TOLERANCE * max(1.0, float(np.abs(expected).max())):
            raise ExportError(
                f"{path}: onnxruntime's logits differ by {difference:.2g} from PyTorch's, for images of {width} x "
                f"{height} pixels; nothing written"
            )
        largest = max(largest, difference)
    write_atomically(path, content)
    return largest


def _traced(segmenter: Segmenter) -> bytes:
    """By tracing: torch.export (dynamo=True) cannot express padding to a multiple of the stride for every size."""
    batch, height, width = _TRACED
    axes = {0: "batch", 2: "height", 3: "width"}
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch, about the exporter that it prefers, and about sizes as constants
        torch.onnx.export(
            segmenter,
            (torch.zeros(batch, 3, height, width),),
            Path(folder, "traced.onnx"),
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes={"images": axes, "logits": axes},
            opset_version=OPSET,
            dynamo=False,
        )
        return Path(folder, "traced.onnx").read_bytes()
