"""A trained network as ONNX, for runtimes that know no PyTorch."""

from pathlib import Path

import numpy as np
import torch

from pipeline.generator.checkpoints.native import write_atomically
from pipeline.segmentation.models import Segmenter
from schemas.errors import ConfigError, LabelmillError
from schemas.segmentation import SegmentationModelCard

OPSET = 18
# Other sizes than the ones that the graph is traced with.
_CHECKED_BATCH = 3
_TOLERANCE = 1e-3


class ExportError(LabelmillError):
    """The exported file does not do what the network does."""


def export_onnx(segmenter: Segmenter, card: SegmentationModelCard, path: Path) -> float:
    """Write a network, in eval mode on the CPU, as ONNX; the largest difference of logits to PyTorch's.

    Input `images`: float32 [batch, 3, H, W], RGB in [0, 1], of the height and width that it learned from. Output
    `logits`: float32 [batch, classes, H, W]. Normalisation is inside, and so is the way from colours to gray of one
    that learned from gray images. Classes, height and width stand in the file's metadata.
    The file is run by onnxruntime on random images, in another batch size than it was traced with, before it
    appears. Raises ConfigError without the extra `onnx`, ExportError where the logits differ.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 (torch.onnx.export writes through it)
    except ImportError as error:
        raise ConfigError(
            f"export needs onnx, onnxscript and onnxruntime ({error}): pip install 'labelmill[onnx]'"
        ) from error
    height, width = card.image_shape.size
    program = torch.onnx.export(
        segmenter,
        (torch.zeros(2, 3, height, width),),
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, {"classes": ",".join(card.classes), "height": str(height), "width": str(width)})
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).random((_CHECKED_BATCH, 3, height, width), np.float32)
    (found,) = session.run(["logits"], {"images": images})
    with torch.no_grad():
        expected = segmenter(torch.from_numpy(images)).numpy()
    difference = float(np.abs(found - expected).max())
    if not difference <= _TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise ExportError(f"{path}: onnxruntime's logits differ by {difference:.2g} from PyTorch's; nothing written")
    write_atomically(path, content)
    return difference
