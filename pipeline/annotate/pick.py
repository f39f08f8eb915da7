"""`labelmill annotate pick`: choose images of a pool and write them as a set."""

from collections.abc import Callable
from pathlib import Path

from labelmill.pipeline.annotate.choose import choose_coverage, choose_uncertain
from labelmill.pipeline.annotations.write import check_free, comfortable_scale, write_description, write_set
from labelmill.pipeline.generator.sampling import Sampler
from labelmill.pipeline.labelers.base import Labeler
from labelmill.pipeline.process.device import repeatable_kernels
from labelmill.schemas.annotations import AnnotationSet, GeneratorDraw, Pick
from labelmill.schemas.errors import ConfigError

OpenLabeler = Callable[[], Labeler]


def pick(
    sampler: Sampler,
    checkpoint_sha256: str,
    picked: Pick,
    folder: Path,
    *,
    scale: int | None,
    classes: tuple[str, ...],
    open_labeler: OpenLabeler,
) -> AnnotationSet:
    """Choose images and write them, or find that they are there already.

    scale: how many times larger images for people are; None chooses it. open_labeler: for `uncertain` alone. Raises
    ConfigError and OutputError, the latter before any work where the folder holds another set.
    """
    about = AnnotationSet(
        checkpoint_sha256=checkpoint_sha256,
        image_shape=sampler.generator.spec.image_shape,
        draw=GeneratorDraw.of(sampler.config),
        classes=classes,
        picked=picked,
        images=(),
    )
    there = check_free(folder, about)
    if there is not None:
        return _as_asked(folder, there, scale, classes)
    seeds = _chosen(sampler, picked, open_labeler)
    return write_set(folder, sampler, about, seeds, scale or comfortable_scale(about.image_shape))


def _as_asked(folder: Path, there: AnnotationSet, scale: int | None, classes: tuple[str, ...]) -> AnnotationSet:
    """The set that is there, which gets its classes now where it had none. Raises ConfigError where it differs."""
    scales = {image.scale for image in there.images}
    if scale is not None and scales != {scale}:
        raise ConfigError(f"--scale {scale}: {folder} has its images enlarged by {', '.join(map(str, sorted(scales)))}")
    if not classes or classes == there.classes:
        return there
    if there.classes:
        raise ConfigError(f"--classes {','.join(classes)}: {folder} has {', '.join(there.classes)} already")
    named = there.with_classes(classes, there.rest)
    write_description(folder, named)
    return named


def _chosen(sampler: Sampler, picked: Pick, open_labeler: OpenLabeler) -> list[int]:
    pool = range(picked.first_seed, picked.first_seed + picked.pool)
    if picked.choose == "random":
        return list(pool[: picked.count])
    with repeatable_kernels():
        if picked.choose == "coverage":
            return choose_coverage(sampler, pool, picked.count)
        return choose_uncertain(sampler, open_labeler(), pool, picked.count)
