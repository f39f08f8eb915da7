"""Numbers that say how close a generator in training is to its data.

Always: the Fréchet distance of 8x8 thumbnails, which knows layout and colour and no detail. Where weights are given:
the Fréchet inception distance (Heusel et al. 2017), with torch-fidelity's network, which is FID as the field reports it
but for the number of images.

Shape suffixes: B batch, N images, C channels, H height, W width, Z latent, D features.
"""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from labelmill.pipeline.generator.networks import Generator
from labelmill.pipeline.generator.training.frechet import Floats, frechet_distance
from labelmill.pipeline.generator.training.images import TrainingImages
from labelmill.schemas.errors import ConfigError
from labelmill.schemas.training import MonitorConfig

THUMBNAIL = 8
_BATCH_SIZE = 16

Features = Callable[[Tensor], Tensor]
"""Images float32 [B, 3, H, W] in [-1, 1] to features [B, D]."""


def thumbnails(images_BCHW: Tensor) -> Tensor:
    """Means of blocks of pixels, [B, 3 * 8 * 8]."""
    return functional.adaptive_avg_pool2d(images_BCHW, THUMBNAIL).flatten(1)


class QualityMonitor:
    """Distances between the data and the same latents' images, whenever asked."""

    def __init__(self, config: MonitorConfig, data: TrainingImages, device: torch.device) -> None:
        self.config, self.device = config, device
        self._features: dict[str, Features] = {"thumbnail_distance": thumbnails}
        if config.fid_weights is not None:
            self._features["fid"] = load_inception(config.fid_weights, device)
        self._real: Mapping[str, Floats] | None = None
        self._data = data

    def measure(self, generator: Generator) -> dict[str, float]:
        """Each distance by its name in the log, of latents RandomState(0), with constant noise."""
        if self._real is None:
            self._real = self._look(self._real_batch, max(2, min(self.config.num_images, len(self._data))))
        z_NZ = np.random.RandomState(0).randn(self.config.num_images, generator.spec.z_dim)

        @torch.no_grad()
        def fake_batch(start: int, stop: int) -> Tensor:
            z_BZ = torch.from_numpy(z_NZ[start:stop]).float().to(self.device)
            return generator.synthesize(generator.map(z_BZ)).images_BCHW.clamp(-1, 1)

        fake = self._look(fake_batch, self.config.num_images)
        return {name: frechet_distance(self._real[name], fake[name]) for name in self._features}

    def _real_batch(self, start: int, stop: int) -> Tensor:
        return self._data.batch(start, stop - start).to(self.device)

    def _look(self, batch: Callable[[int, int], Tensor], num_images: int) -> dict[str, Floats]:
        parts: dict[str, list[Floats]] = {name: [] for name in self._features}
        for start in range(0, num_images, _BATCH_SIZE):
            images_BCHW = batch(start, min(start + _BATCH_SIZE, num_images))
            for name, features in self._features.items():
                parts[name].append(features(images_BCHW).cpu().double().numpy())
        return {name: np.concatenate(part) for name, part in parts.items()}


def load_inception(weights: Path, device: torch.device) -> Features:
    """The pooled features, 2,048 numbers, of torch-fidelity's Inception network.

    Its own loading would execute what a file says: so the file is read as tensors alone and written anew for it.
    Raises ConfigError where the file, or the library, is not there or not usable.
    """
    network = _inception(_read_weights(weights)).to(device)

    @torch.no_grad()
    def features(images_BCHW: Tensor) -> Tensor:
        found: tuple[Tensor] = network((images_BCHW * 127.5 + 128).clamp(0, 255).to(torch.uint8))
        return found[0]

    return features


def _inception(tensors: Mapping[str, Tensor]) -> nn.Module:
    from labelmill.pipeline.process.torchvision_import import import_torchvision

    import_torchvision()  # torch-fidelity imports it
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise ConfigError(
            f"monitor.fid_weights: torch-fidelity is needed, and cannot be imported ({error}): "
            f"pip install 'labelmill[fid]'"
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "inception.pth"
        torch.save(dict(tensors), path)
        network: nn.Module = FeatureExtractorInceptionV3(
            "inception", ["2048"], feature_extractor_weights_path=str(path)
        )
    return network


def _read_weights(path: Path) -> dict[str, Tensor]:
    hint = "fetch weights-inception-2015-12-05-6726825d.pth of torch-fidelity's releases, or leave the field out"
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken file makes of torch's reader
        raise ConfigError(
            f"monitor.fid_weights: {path}: not readable as weights ({type(error).__name__}); {hint}"
        ) from error
    if not isinstance(tensors, dict) or tuple(getattr(tensors.get("fc.weight"), "shape", ())) != (1008, 2048):
        raise ConfigError(f"monitor.fid_weights: {path}: not weights of that Inception network; {hint}")
    return tensors
