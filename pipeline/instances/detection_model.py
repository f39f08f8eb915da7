"""A detection model of Hugging Face transformers, from a folder on this machine. Nothing is downloaded, and nothing in
the folder is executed: JSON and safetensors are read, code beside them is not.

Shape suffixes: B batch, H height, W width, C channels.
"""

import hashlib
import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from labelmill.pipeline.process.device import repeatable_kernels
from labelmill.pipeline.process.torchvision_import import import_torchvision
from labelmill.schemas.errors import ConfigError
from labelmill.schemas.instances import DetectionModelConfig
from labelmill.schemas.regular_file import read_regular_file
from labelmill.schemas.user_path import expand_user

_CONFIG, _PREPROCESSOR = "config.json", "preprocessor_config.json"
_INDEX = "model.safetensors.index.json"
_MOST_JSON_BYTES = 2**24
_BLOCK_BYTES = 2**22


def model_sha256(config: DetectionModelConfig) -> str:
    """Of all that a model is made of, hex. Raises ConfigError where something is missing."""
    folder, digest = _folder(config), hashlib.sha256()
    weights = sorted(path for path in folder.glob("*.safetensors"))
    if not weights:
        raise _problem(folder, "holds no *.safetensors; pickled weights are not read, as they can execute code")
    for path in (folder / _CONFIG, folder / _PREPROCESSOR, folder / _INDEX, *weights):
        if path.name == _INDEX and not path.exists():
            continue
        digest.update(f"{path.name}\0".encode())
        try:
            with path.open("rb") as file:
                while block := file.read(_BLOCK_BYTES):
                    digest.update(hashlib.sha256(block).digest())
        except OSError as error:
            raise _problem(folder, f"{path.name} cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


class DetectionModel:
    """Finds boxes in images; its answer to an image is the same beside any others."""

    def __init__(self, config: DetectionModelConfig, device: torch.device) -> None:
        """Raises ConfigError for a folder without a detector, for classes that it does not know, and without
        transformers."""
        folder = _folder(config)
        _check_config(folder)
        self._processor, self._model = _open(folder)
        self._model = self._model.eval().requires_grad_(False).to(device)
        self._device, self._score_min = device, config.score_min
        self._names = {int(number): str(name) for number, name in self._model.config.id2label.items()}
        unknown = sorted(set(config.classes or ()) - set(self._names.values()))
        if unknown:
            known = ", ".join(list(self._names.values())[:100])
            raise ConfigError(f"instances.detector.classes: {', '.join(unknown)}: this model knows {known}")
        self._kept = set(config.classes or self._names.values())

    def __call__(self, images_BHWC: NDArray[np.uint8]) -> list[list[Mapping[str, Any]]]:
        """The boxes of each image, as `Detect` gives them."""
        return [self._look(image_HWC) for image_HWC in images_BHWC]

    def _look(self, image_HWC: NDArray[np.uint8]) -> list[Mapping[str, Any]]:
        """One image at a time: the size of a batch chooses kernels and thereby bits."""
        rgb_HWC = np.repeat(image_HWC, 3, axis=2) if image_HWC.shape[2] == 1 else image_HWC
        inputs = self._processor(images=[rgb_HWC], return_tensors="pt", input_data_format="channels_last")
        with repeatable_kernels():
            outputs = self._model(**inputs.to(self._device))
        found = self._processor.post_process_object_detection(
            outputs, threshold=self._score_min, target_sizes=[image_HWC.shape[:2]]
        )[0]
        rows = zip(found["labels"].tolist(), found["scores"].tolist(), found["boxes"].tolist(), strict=True)
        boxes = [
            {"class": self._names[label], "score": score, "box": [left, top, right - left, bottom - top]}
            for label, score, (left, top, right, bottom) in rows
        ]
        return [box for box in boxes if box["class"] in self._kept]


def _open(folder: Path) -> tuple[Any, Any]:
    """Processor and model."""
    try:
        if find_spec("torchvision") is not None:
            import_torchvision()  # transformers' own import of it fails beside a CPU build of torch
        from transformers import AutoImageProcessor, AutoModelForObjectDetection
    except ImportError as error:
        raise ConfigError(
            f"instances.detector.kind: transformers needs the package transformers ({error}): "
            "pip install 'labelmill[detect]'"
        ) from error
    try:
        options = {"local_files_only": True, "trust_remote_code": False}
        processor = AutoImageProcessor.from_pretrained(str(folder), **options)
        model = AutoModelForObjectDetection.from_pretrained(str(folder), use_safetensors=True, **options)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise _problem(folder, f"is no object detector that transformers can open: {error}") from error
    if not hasattr(processor, "post_process_object_detection"):
        raise _problem(folder, f"its {_PREPROCESSOR} is not of an object detector")
    return processor, model


def _check_config(folder: Path) -> None:
    """Raises ConfigError for what would be fetched from elsewhere, or is not plain PyTorch."""
    try:
        values = json.loads(read_regular_file(folder / _CONFIG, _MOST_JSON_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise _problem(folder, f"{_CONFIG} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise _problem(folder, f"{_CONFIG} is no JSON object")
    if values.get("use_timm_backbone"):
        raise _problem(folder, f"{_CONFIG} asks for a backbone of timm; save one with use_timm_backbone=False")


def _folder(config: DetectionModelConfig) -> Path:
    folder = config.folder / expand_user(config.path)
    if not folder.is_dir():
        raise _problem(folder, "is no folder; models are not fetched: download it, and give its path")
    return folder


def _problem(folder: Path, text: str) -> ConfigError:
    return ConfigError(f"instances.detector.path: {folder}: {text}")
