"""What a network sees in images of the generator, and whether that is worth anything.

Shape suffixes: B batch, H height, W width, K classes.
"""

from collections.abc import Iterator

import numpy as np

from labelmill.pipeline.generator.sampling import Sampler
from labelmill.pipeline.labelers.network.fitted import FittedNetwork, NetworkProvenance, content_reference
from labelmill.pipeline.labelers.network.labeler import NetworkLabeler
from labelmill.pipeline.networks.trained import parse_network
from labelmill.schemas.labeler_findings import LabelerFindings
from labelmill.schemas.labelers.network import NetworkLabelerConfig
from labelmill.schemas.sample import IGNORE

_LEAST_SHARE = 0.001
"""Of the pixels: less foreground, or less background, is none."""
_DOUBTFUL_CONFIDENCE = 0.6


def fit_network(
    config: NetworkLabelerConfig, sampler: Sampler, content: bytes, checkpoint_sha256: str | None
) -> FittedNetwork:
    """Label images of the generator, and count what they show. content: of the network's file."""
    labeler = NetworkLabeler(sampler, parse_network(content, config, sampler.device))
    pixels_K, images_K, confidences = np.zeros(IGNORE + 1, np.int64), np.zeros(IGNORE + 1, np.int64), list[float]()
    seeds = range(config.fit_first_seed, config.fit_first_seed + config.fit_samples)
    for batch in sampler.batches(seeds, labeler.layers):
        labels = labeler.label(batch)
        for mask_HW in labels.masks_BHW.cpu().numpy():
            counts_K = np.bincount(mask_HW.ravel(), minlength=IGNORE + 1)
            pixels_K, images_K = pixels_K + counts_K, images_K + (counts_K > 0)
        confidences += labels.confidence_B.tolist()
    spec, count = sampler.generator.spec, len(labeler.classes)
    provenance = NetworkProvenance(
        config=config.model_copy(update={"model": content_reference(content)}),
        checkpoint_sha256=checkpoint_sha256,
        resolution=spec.resolution,
        num_ws=spec.num_ws,
        w_dim=spec.w_dim,
        classes=labeler.classes,
        class_pixels=(*pixels_K[:count].tolist(), int(pixels_K[IGNORE])),
        class_images=tuple(images_K[:count].tolist()),
        confidence=round(float(np.mean(confidences)), 6),
    )
    return FittedNetwork(provenance, content)


def network_findings(provenance: NetworkProvenance) -> LabelerFindings:
    """What `fit` saw, in words, and whether it is worth anything."""
    background, total = provenance.class_pixels[0], sum(provenance.class_pixels)
    shares = [
        f"{name} {100 * pixels / total:.1f} %"
        for name, pixels in zip((*provenance.classes, "ignored"), provenance.class_pixels, strict=True)
    ]
    words = [
        f"what the network sees in {provenance.config.fit_samples} images, by pixels: {', '.join(shares)}",
        f"mean confidence {provenance.confidence:.2f}",
    ]
    foreground = sum(provenance.class_pixels[1:-1])
    if min(background, foreground) < _LEAST_SHARE * total:
        lacking = "foreground" if foreground <= background else "background"
        weak = (
            f"weak: it sees no {lacking}: check classes (the first is the background), values, mean, std, order and "
            f"size, and whether the network knows such images at all"
        )
        return LabelerFindings(verdict="weak", words=[*words, weak])
    doubts = list(_doubts(provenance))
    return LabelerFindings(verdict="doubtful" if doubts else "sound", words=words + doubts)


def _doubts(provenance: NetworkProvenance) -> Iterator[str]:
    unseen = [name for name, count in zip(provenance.classes, provenance.class_images, strict=True) if not count]
    if unseen:
        yield f"doubtful: classes that it sees in none of these images: {', '.join(unseen)}"
    if provenance.confidence < _DOUBTFUL_CONFIDENCE:
        yield (
            f"doubtful: a mean confidence below {_DOUBTFUL_CONFIDENCE:g}: the network hardly knows such images, or "
            f"they go in otherwise than it learned (values, mean, std, order, size)"
        )
