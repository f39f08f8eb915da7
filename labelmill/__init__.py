"""Labeled segmentation datasets from a StyleGAN2 generator.

    generator = labelmill.open_generator("bundled:avatars-64", truncation_psi=0.7)
    labeler = labelmill.fit_labeler(generator, "style_mixing")
    labeled = labelmill.label(generator, labeler, seeds=range(16))    # batches of images and masks
    labelmill.show(labeled, labeler.classes).save("labels.png")       # or the last line of a notebook's cell
    labelmill.make_dataset("run.yaml")                                # what `labelmill generate run.yaml` does
    dataset = labelmill.open_dataset("out/demo", split="train")       # a torch Dataset, for DataLoader
    samples = labelmill.read_dataset("out/demo", split="val")         # an iterator of NumPy arrays

Mistakes raise LabelmillError, whose message says what to do next. Each function documents shapes and errors.

The product's packages lie beside this folder, which links to them, so that they are imported by its name.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from labelmill.schemas.errors import LabelmillError

if TYPE_CHECKING:
    from labelmill.pipeline.api import (
        find_instances,
        fit_labeler,
        label,
        make_dataset,
        open_dataset,
        open_generator,
        read_dataset,
        show,
    )

__all__ = [
    "LabelmillError",
    "__version__",
    "find_instances",
    "fit_labeler",
    "label",
    "make_dataset",
    "open_dataset",
    "open_generator",
    "read_dataset",
    "show",
]

__version__ = version("labelmill")


def __getattr__(name: str) -> Any:
    """What `pipeline/api.py` defines, imported when it is asked for: PyTorch takes seconds."""
    if name in __all__:
        # Before PyTorch is imported, which reads some of them.
        import_module("labelmill.pipeline.process.settings").take_process_settings()
        return getattr(import_module("labelmill.pipeline.api"), name)
    raise AttributeError(f"module 'labelmill' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
