"""Settings, and a prompt model that knows colours, for tests of feature clusters."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from labelmill.schemas.labelers.feature_clusters import FeatureClustersConfig

SMALL = {"method": "feature_clusters", "clusters": 5, "restarts": 2, "iterations": 5, "passes": 2, "fit_samples": 16}
COLOURS = {"red": (1.0, -1.0, -1.0), "green": (-1.0, 1.0, -1.0), "blue": (-1.0, -1.0, 1.0), "grey": (0.1, 0.1, 0.1)}


def make_config(**settings: object) -> FeatureClustersConfig:
    """Clusters of features as they are alone decide, unless settings say otherwise."""
    simple = {"naming_samples": 8, "normalisation": "none", "foreground": "clusters"}
    return FeatureClustersConfig.model_validate({**SMALL, **simple, **settings})


class ColourPrompts:
    """Knows the words of COLOURS; a place of an image is its colour. The fourth number is the same everywhere."""

    name, sha256 = "colours", "c" * 64

    def embed_prompts(self, prompts: Sequence[str]) -> Tensor:
        return functional.normalize(torch.tensor([[*COLOURS[prompt], 0.1] for prompt in prompts]), dim=1)

    def embed_images(self, images_BCHW: Tensor) -> Tensor:
        return functional.normalize(self.dense(images_BCHW).mean(dim=(2, 3)), dim=1)

    def dense(self, images_BCHW: Tensor) -> Tensor:
        small_BChw = functional.avg_pool2d(images_BCHW, 2)
        return torch.cat([small_BChw, torch.full_like(small_BChw[:, :1], 0.1)], dim=1)
