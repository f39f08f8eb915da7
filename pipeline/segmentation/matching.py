"""Which class each unnamed cluster stands for, from the confusion matrix of a whole dataset."""

from enum import Enum

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from labelmill.pipeline.segmentation.metrics import Counts
from labelmill.schemas.sample import IGNORE


class Matching(Enum):
    """How clusters find their classes."""

    ONE_TO_ONE = "one_to_one"
    """At most one cluster a class, so that most pixels are right (Kuhn, 1955). Clusters left over have no class."""
    MANY_TO_ONE = "many_to_one"
    """Each cluster is the class that most of its pixels are. Flatters over-clustering: more clusters never hurt."""


def match_clusters(confusion_TP: Counts, num_classes: int, matching: Matching) -> NDArray[np.uint8]:
    """The class [256] uint8 of each predicted value; 255 for values without one, and for 255 itself.

    confusion_TP: pixels by true class and predicted cluster, [256, 256].
    """
    table = np.full(len(confusion_TP), IGNORE, np.uint8)
    overlap_KP = confusion_TP[:num_classes, :IGNORE]
    clusters = np.flatnonzero(overlap_KP.sum(axis=0))
    if matching is Matching.MANY_TO_ONE:
        table[clusters] = overlap_KP[:, clusters].argmax(axis=0)
    else:
        classes, chosen = linear_sum_assignment(overlap_KP[:, clusters], maximize=True)
        table[clusters[chosen]] = classes
    return table
