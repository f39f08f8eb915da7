"""Images that composites must look like, where they are not the generator's own.

Shape suffixes: B batch, C channels, H height, W width.
"""

from pathlib import Path

from torch import Tensor

from labelmill.pipeline.generator.sampling import Sampler
from labelmill.pipeline.generator.spec import GeneratorSpec
from labelmill.pipeline.generator.training.images import TrainingDataError, TrainingImages, load_images, source_sha256
from labelmill.schemas.errors import ConfigError
from labelmill.schemas.labelers.alpha_network import AlphaNetworkConfig
from labelmill.schemas.training import FolderData, ShardsData, TrainingData


class Reals:
    """Batches of real images by the step that asks for them."""

    def __init__(self, config: AlphaNetworkConfig, sampler: Sampler, cache: Path) -> None:
        """Decodes all images into `cache`. Raises TrainingDataError for what cannot be read."""
        data = located(config)
        assert data is not None
        loaded = load_images(data, sampler.generator.spec.resolution, cache)
        self._images = TrainingImages(loaded.images_NHWC, seed=config.seed, horizontal_flip=False)
        self._batch_size, self._device = config.batch_size, sampler.device

    def __call__(self, step: int) -> Tensor:
        """[B, C, H, W] float32 in [-1, 1]."""
        return self._images.batch(step * self._batch_size, self._batch_size).to(self._device)


def located(config: AlphaNetworkConfig) -> TrainingData | None:
    """Where the images are: paths begin in the run file's folder."""
    reals = config.reals
    if isinstance(reals, FolderData):
        return reals.model_copy(update={"path": config.folder / reals.path})
    if isinstance(reals, ShardsData):
        return reals.model_copy(update={"urls": tuple(str(config.folder / url) for url in reals.urls)})
    return reals


def reals_sha256(config: AlphaNetworkConfig) -> str | None:
    """Of the images' files. Raises ConfigError where there are none."""
    data = located(config)
    try:
        return None if data is None else source_sha256(data)
    except TrainingDataError as error:
        raise ConfigError(f"labeler.reals: {error}") from error


def check_reals(config: AlphaNetworkConfig, spec: GeneratorSpec) -> None:
    """Raises ConfigError where the generator's images cannot look like any that are read: those are square and RGB."""
    height, width = spec.image_size
    if config.reals is not None and (height != width or spec.img_channels != 3):
        raise ConfigError(
            f"labeler.reals: images are read as RGB squares, but this generator makes {spec.image_shape.colours} "
            f"images of {spec.size_in_words}; use null, its own images"
        )
