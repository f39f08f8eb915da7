"""A dataset's masks against those of a network that a user trusts: what `labelmill evaluate OUTPUT --judge` does.

With the network's masks as truth, as papers score masks of generated images, which have no labels (pseudo ground truth;
Labels4Free section 4, Segmentation in Style section 4).

Shape suffixes: B batch, H height, W width.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from labelmill.pipeline.networks.trained import TrainedNetwork
from labelmill.pipeline.segmentation.metrics import ClassCounts, MaskEvaluator, confusion_matrix, mean
from labelmill.pipeline.segmentation.reading import LabeledImage, Split, read_samples
from labelmill.schemas.errors import ConfigError
from labelmill.schemas.judgement import JudgedScores
from labelmill.schemas.sample import IGNORE

_BATCH_SIZE = 16
_Table = NDArray[np.uint8]
"""The common value of each mask value [256]; 255 for those without one."""


@dataclass(frozen=True)
class JudgedSample:
    """One sample of a dataset."""

    key: str
    miou: float
    """Agreement with the network: over the classes that either shows."""
    confidence: float
    """The labeler's own."""


@dataclass(frozen=True)
class Judgement:
    """A whole dataset."""

    scores: JudgedScores
    samples: tuple[JudgedSample, ...]
    """In the order of agreement, the least first."""


@dataclass(frozen=True)
class CommonClasses:
    """The classes that a dataset and a network are compared by, and what their values are among these."""

    names: tuple[str, ...]
    of_dataset: _Table
    of_network: _Table


def judge(split: Split, network: TrainedNetwork, sha256: str) -> Judgement:
    """Score a dataset's masks, with a network's masks of its images as truth.

    sha256: of the network's file. Raises ConfigError where they have no classes in common, CheckpointError where the
    network fails, OutputError for a damaged shard.
    """
    common = common_classes(split.classes, network.classes)
    evaluator, samples, left_out, num_pixels = MaskEvaluator(common.names), list[JudgedSample](), 0, 0
    for batch in _batches(read_samples(split.reading())):
        images_BHWC = torch.from_numpy(np.stack([sample.image_HWC for sample in batch]))
        truths_BHW = network.segment(images_BHWC).masks_BHW.cpu().numpy()
        for sample, said_HW in zip(batch, truths_BHW, strict=True):
            mask_HW, truth_HW = compared(sample.mask_HW, said_HW, common)
            evaluator.add(mask_HW, truth_HW)
            left_out, num_pixels = left_out + int((truth_HW == IGNORE).sum()), num_pixels + truth_HW.size
            own = mean(ClassCounts(confusion_matrix(mask_HW, truth_HW), IGNORE).iou())
            if own is not None:
                samples.append(JudgedSample(sample.key, own, sample.metadata.candidate.confidence))
    correlation = rank_correlation([each.confidence for each in samples], [each.miou for each in samples])
    scores = JudgedScores(
        **dict(evaluator.scores()),
        judge_sha256=sha256,
        not_judged=left_out / num_pixels,
        confidence_correlation=correlation and correlation[0],
        confidence_correlation_error=correlation and correlation[1],
    )
    return Judgement(scores, tuple(sorted(samples, key=lambda sample: (sample.miou, sample.key))))


def _batches(samples: Iterable[LabeledImage]) -> Iterator[list[LabeledImage]]:
    batch: list[LabeledImage] = []
    for sample in samples:
        batch.append(sample)
        if len(batch) == _BATCH_SIZE:
            yield batch
            batch = []
    if batch:
        yield batch


def common_classes(ours: Sequence[str], theirs: Sequence[str]) -> CommonClasses:
    """The classes that both sides name. Where one side has a foreground that the other does not name, but their
    backgrounds have one name, all that is no background is that foreground.

    ours: of the dataset. theirs: of the network. Raises ConfigError where fewer than two are left.
    """
    for two, other in ((ours, theirs), (theirs, ours)):
        if len(two) == 2 and two[0] == other[0] and two[1] not in other:
            merged = np.full(IGNORE + 1, IGNORE, np.uint8)
            merged[: max(len(ours), len(theirs))] = 1
            merged[0] = 0
            return CommonClasses(tuple(two), merged, merged)
    names = tuple(name for name in ours if name in theirs)
    if len(names) < 2:
        raise ConfigError(
            f"--judge: of the dataset's classes ({', '.join(ours)}) the network knows "
            f"{', '.join(names) or 'none'}; its own are {', '.join(theirs)}. Give a file with `model:` and `classes:`, "
            f"which names its outputs as the dataset does (outputs of one name are one class)"
        )
    return CommonClasses(names, _table(ours, names), _table(theirs, names))


def _table(names: Sequence[str], common: Sequence[str]) -> _Table:
    table = np.full(IGNORE + 1, IGNORE, np.uint8)
    table[: len(names)] = [common.index(name) if name in common else IGNORE for name in names]
    return table


def compared(
    mask_HW: NDArray[np.uint8], said_HW: NDArray[np.uint8], common: CommonClasses
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A dataset's and a network's mask in common values. The second is 255 also where the first shows a class that the
    network does not know: it cannot say whether that is right. Where the first says 255 itself, it is wrong."""
    ours_HW, theirs_HW = common.of_dataset[mask_HW], common.of_network[said_HW]
    unknown_HW = (ours_HW == IGNORE) & (mask_HW != IGNORE)
    return ours_HW, np.where(unknown_HW, np.uint8(IGNORE), theirs_HW)


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> tuple[float, float] | None:
    """Spearman's, and its standard error (1 - r²) / sqrt(n - 1); None where one of them does not vary."""
    if len(set(first)) < 2 or len(set(second)) < 2:
        return None
    found = float(spearmanr(first, second).statistic)
    return found, (1 - found**2) / (len(first) - 1) ** 0.5


def judgement_lines(judgement: Judgement) -> list[str]:
    """What to say below the table of scores."""
    scores, worst = judgement.scores, judgement.samples[:5]
    lines = [f"not judged: {100 * scores.not_judged:.2f} % of the pixels"]
    if scores.confidence_correlation is not None:
        lines.append(
            f"rank correlation of the labeler's confidence with a sample's agreement: "
            f"{scores.confidence_correlation:.2f} (standard error {scores.confidence_correlation_error:.2f})"
        )
    if worst:
        lines.append("least agreement: " + ", ".join(f"{each.key} {100 * each.miou:.1f}" for each in worst))
    return lines


def samples_csv(samples: Sequence[JudgedSample]) -> bytes:
    """A row per sample: key, mIoU with the network, confidence."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("key", "miou", "confidence"))
    writer.writerows((each.key, f"{each.miou:.6f}", f"{each.confidence:.6f}") for each in samples)
    return text.getvalue().encode()
