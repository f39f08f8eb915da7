"""Labeled segmentation datasets from a StyleGAN2 generator; see `open_generator` and what stands beside it.

The product's packages lie beside this folder, which links to them, so that they are imported by its name.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from labelmill.pipeline.api import fit_labeler, label, open_generator, read_dataset

__all__ = ["__version__", "fit_labeler", "label", "open_generator", "read_dataset"]

__version__ = version("labelmill")


def __getattr__(name: str) -> Any:
    """What `pipeline/api.py` defines, imported when it is asked for: PyTorch takes seconds."""
    if name in __all__:
        return getattr(import_module("labelmill.pipeline.api"), name)
    raise AttributeError(f"module 'labelmill' has no attribute {name!r}")
