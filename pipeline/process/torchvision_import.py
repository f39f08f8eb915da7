"""torchvision beside a PyTorch that its compiled operators cannot load with."""

from importlib import import_module

import torch

from labelmill.schemas.errors import ConfigError

# torchvision describes these two to PyTorch on import, and fails where its compiled library did not define them.
_OPERATORS = ("nms", "qnms")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def import_torchvision() -> None:
    """Import torchvision, so that its models of plain PyTorch operators work.

    Its wheel from PyPI is built for CUDA; its operators do not load beside a CPU build of torch, and the import
    fails although no classifier or segmenter needs them. Only then their schemas are declared, without an
    implementation: detection models still fail when they are run. Raises ConfigError where it is not installed.
    """
    try:
        import_module("torchvision")
    except ImportError as error:
        raise missing_extra("torchvision", error) from error
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in _OPERATORS:
            if not hasattr(torch.ops.torchvision, name):
                torch.library.define(f"torchvision::{name}", _SCHEMA)
        import_module("torchvision")


def missing_extra(library: str, error: ImportError) -> ConfigError:
    """What to say where a library of the extra `train` cannot be imported."""
    return ConfigError(f"{library} is needed, and cannot be imported ({error}): pip install 'labelmill[train]'")
