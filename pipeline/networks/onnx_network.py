"""Segmentation networks in ONNX files, run by onnxruntime.

An ONNX file is a graph of standard operators: no code of its own is loaded, and a file that points to other files is
refused. Images are run one at a time, so that scores do not depend on what else is in a batch; on the CPU.

Shape suffixes: B batch, C channels, H height, W width, O outputs.
"""

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from labelmill.schemas.errors import CheckpointError, ConfigError
from labelmill.schemas.network import NetworkConfig
from labelmill.schemas.sample import IGNORE
from labelmill.schemas.segmentation import LUMINANCE

# What protocol buffers hold at most.
_MOST_BYTES = 2**31 - 1
_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_CHANNELS = (1, 3)


class OnnxNetwork:
    """A file's graph, ready to run."""

    def __init__(self, content: bytes, name: str, config: NetworkConfig) -> None:
        """name: of the file, for messages. Raises CheckpointError for a graph that does not segment images, and
        ConfigError without the extra `onnx`."""
        self._name, self._config = name, config
        self._session = _opened(content, name)
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            raise self._unfit(f"takes {len(inputs)} inputs ({', '.join(each.name for each in inputs)}), not one")
        self._input = inputs[0]
        if self._input.type not in _DTYPES or len(self._input.shape) != 4:
            raise self._unfit(f"takes {self._input.type} of shape {self._input.shape}, not floats of four axes")
        batch, *axes = self._input.shape
        if isinstance(batch, int) and batch != 1:
            raise self._unfit(f"takes batches of {batch} images alone; export it with a free number, or with one")
        self._channels_last = axes[0] not in _CHANNELS and axes[2] in _CHANNELS
        channels, height, width = (axes[2], axes[0], axes[1]) if self._channels_last else axes
        if isinstance(channels, int) and channels not in _CHANNELS:
            raise self._unfit(f"takes images of {channels} channels; gray and RGB work")
        self._is_gray = channels == 1
        self._metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        self.fixed_size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
        self.gives_indices = "int" in self._session.get_outputs()[0].type

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the outputs, where the metadata states them."""
        text = self._metadata.get("classes", "")
        return tuple(name.strip() for name in text.split(",")) if text else None

    @property
    def side(self) -> int | None:
        """The shorter side that the metadata states."""
        sides = [self._metadata.get(key, "") for key in ("height", "width")]
        return min(map(int, sides)) if all(text.isdecimal() and int(text) for text in sides) else None

    def scores(self, images_BCHW: Tensor, num_outputs: int) -> Tensor:
        """The first output [B, O, h, w] float32 on the CPU, of RGB images in [0, 1]. Class indices become scores of 0
        and 1 of `num_outputs` outputs; pixels of 255, or below 0, have 0 everywhere. Raises CheckpointError."""
        return torch.cat([self._scores(image_CHW, num_outputs) for image_CHW in self._prepared(images_BCHW.cpu())])

    def _prepared(self, images_BCHW: Tensor) -> Tensor:
        config = self._config
        x_BCHW = images_BCHW.flip(1) if config.order == "bgr" else images_BCHW
        if config.values == "bytes":
            x_BCHW = x_BCHW * 255
        if config.mean is not None:
            x_BCHW = x_BCHW - torch.tensor(config.mean).reshape(3, 1, 1)
        if config.std is not None:
            x_BCHW = x_BCHW / torch.tensor(config.std).reshape(3, 1, 1)
        if self._is_gray:
            shares = LUMINANCE[::-1] if config.order == "bgr" else LUMINANCE
            x_BCHW = (x_BCHW * torch.tensor(shares).reshape(3, 1, 1)).sum(dim=1, keepdim=True)
        return x_BCHW

    def _scores(self, image_CHW: Tensor, num_outputs: int) -> Tensor:
        axes = (1, 2, 0) if self._channels_last else (0, 1, 2)
        array = np.ascontiguousarray(image_CHW.permute(axes)[None].numpy(), _DTYPES[self._input.type])
        try:
            found = self._session.run(None, {self._input.name: array})[0]
        except _runtime_errors() as error:
            raise self._unfit(f"fails on an image of {list(array.shape)}: {_first_line(error)}") from error
        return self._as_scores(np.asarray(found), num_outputs)

    def _as_scores(self, found: NDArray[Any], num_outputs: int) -> Tensor:
        if self.gives_indices and found.ndim in (3, 4) and found[0].size == np.prod(found.shape[-2:]):
            return self._of_indices(found.reshape(found.shape[-2:]), num_outputs)
        if self.gives_indices or found.ndim != 4:
            raise self._unfit(
                f"gives {found.dtype} of shape {list(found.shape)} first; scores [1, classes, height, width] or class "
                f"indices [1, height, width] work"
            )
        scores_1OHW = torch.from_numpy(found.astype(np.float32))
        if not bool(torch.isfinite(scores_1OHW).all()):
            raise self._unfit("gives scores that are not finite")
        return scores_1OHW.permute(0, 3, 1, 2) if self._channels_last else scores_1OHW

    def _of_indices(self, indices_HW: NDArray[Any], num_outputs: int) -> Tensor:
        says_HW = (indices_HW >= 0) & (indices_HW != IGNORE)
        if says_HW.any() and int(indices_HW[says_HW].max()) >= num_outputs:
            raise self._unfit(f"gives class {int(indices_HW[says_HW].max())}, but {num_outputs} classes are named")
        planes = [says_HW & (indices_HW == value) for value in range(num_outputs)]
        return torch.from_numpy(np.stack(planes)[None]).float()

    def _unfit(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{self._name}: {problem}")


def _opened(content: bytes, name: str) -> Any:
    """An onnxruntime session. Raises CheckpointError, and ConfigError without the libraries."""
    onnx, onnxruntime = _libraries()
    from google.protobuf.message import DecodeError

    if len(content) > _MOST_BYTES:
        raise CheckpointError(f"{name}: has {len(content):,} bytes; ONNX files hold {_MOST_BYTES:,} at most")
    try:
        model = onnx.load_from_string(content)
    except DecodeError as error:
        raise CheckpointError(
            f"{name}: is neither an ONNX file nor the model.safetensors of `labelmill train`"
        ) from error
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _tensors(model, onnx.TensorProto)):
        raise CheckpointError(
            f"{name}: keeps weights in other files, which are not read; save it as one file "
            f"(onnx.save(onnx.load(path), path))"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.use_deterministic_compute = True
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except _runtime_errors() as error:
        raise CheckpointError(f"{name}: onnxruntime cannot run it: {_first_line(error)}") from error


def _tensors(message: Any, kind: type) -> Iterator[Any]:
    """The tensors anywhere in a model: of the graph, of its nodes, and of graphs within these."""
    if isinstance(message, kind):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for each in [value] if hasattr(value, "ListFields") else value:
                yield from _tensors(each, kind)


def _libraries() -> tuple[ModuleType, ModuleType]:
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise ConfigError(
            f"a network in an ONNX file needs onnx and onnxruntime ({error}): pip install 'labelmill[onnx]'"
        ) from error
    return onnx, onnxruntime


def _runtime_errors() -> tuple[type[Exception], ...]:
    """What onnxruntime raises; its exceptions have no common base."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    return (*own, RuntimeError, ValueError)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]
