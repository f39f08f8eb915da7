"""Two sets of masks, matched by name, to scores: what `labelmill evaluate` does."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from labelmill.pipeline.pictures.mask_png import MaskError
from labelmill.pipeline.segmentation.mask_source import MaskSource
from labelmill.pipeline.segmentation.matching import Matching, match_clusters
from labelmill.pipeline.segmentation.metrics import MaskEvaluator
from labelmill.schemas.sample import IGNORE
from labelmill.schemas.scores import Scores

# Of many offenders a message names so many.
_NUM_NAMED = 5
# More classes than this are named, or counted: gray levels are as many.
_MOST_UNNAMED_CLASSES = 64
_CONVERT_LEVELS = (
    "Gray levels (antialiased or resized masks, JPEG) are not class indices: apply a threshold first, such as "
    "with ImageMagick's `mogrify -threshold 50% *.png`"
)

Mask = NDArray[np.uint8]


def evaluate(
    pred: MaskSource,
    truth: MaskSource,
    *,
    classes: Sequence[str] | None = None,
    positive: int | None = None,
    matching: Matching | None = None,
) -> Scores:
    """Score `pred` against `truth`, holding one pair of masks at a time.

    classes: names of the values 0, 1, ...; None takes those that a source states, else the values are their names.
    positive: files that are not from a dataset hold two values, 0 and this one, which counts as 1.
    matching: predicted values are unnamed clusters, matched to classes first, which takes a second pass.
    Raises MaskError, naming the first offenders, for masks that do not fit together.
    """
    names = _class_names(pred, truth, classes, matching)
    limit = None if names is None else len(names)
    pairs = _Pairs(
        MaskSide(pred, positive, limit if matching is None else None),
        MaskSide(truth, positive, limit),
        are_named=names is not None,
        are_clusters=matching is not None,
    )
    table = np.arange(IGNORE + 1, dtype=np.uint8)
    if matching is not None:
        clusters = MaskEvaluator()
        for pred_HW, truth_HW in pairs:
            clusters.add(pred_HW, truth_HW)
        table = match_clusters(clusters.confusion(), limit or pairs.truth.highest_class + 1, matching)
    evaluator = MaskEvaluator(names)
    for pred_HW, truth_HW in pairs:
        evaluator.add(table[pred_HW], truth_HW)
    return evaluator.scores()


def as_lines(scores: Scores) -> list[str]:
    """The scores as a table for people, in percent."""
    band = scores.trimap_3px
    width = max(len("class"), *(len(name) for name in scores.iou))
    lines = [f"{'class':<{width}}  {'IoU':>6}  {'IoU 3 px':>8}"]
    rows = [(name, scores.iou[name], band.iou[name]) for name in scores.iou]
    for name, whole, near in [*rows, ("mean", scores.miou, band.miou)]:
        lines.append(f"{name:<{width}}  {_percent(whole):>6}  {_percent(near):>8}")
    figures = {
        "F1": scores.f1,
        "precision": scores.precision,
        "recall": scores.recall,
        "accuracy": scores.accuracy,
        "frequency-weighted IoU": scores.fwiou,
        "mean of images' mIoU": scores.image_miou,
    }
    lines.append(", ".join(f"{name} {_percent(value)}" for name, value in figures.items()))
    return [*lines, f"{scores.num_images} images, {scores.num_pixels} pixels"]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


class MaskSide:
    """The masks of one side, and which values they were seen to hold."""

    def __init__(
        self,
        source: MaskSource,
        positive: int | None,
        num_classes: int | None,
        positive_key: str = "--positive",
    ) -> None:
        """positive: of masks that are not from a dataset, the value that counts as 1. positive_key: where to say it."""
        self.source = source
        self._positive = positive if source.classes is None else None
        self._positive_key = positive_key
        self._num_classes = num_classes
        self._first_holder: dict[int, str] = {}

    @property
    def highest_class(self) -> int:
        """Of the masks read so far; 0 where none holds a class."""
        if self._positive is not None:
            return 1
        return max((value for value in self._first_holder if value != IGNORE), default=0)

    def read(self, key: str) -> Mask:
        """Class indices [H, W]. Raises MaskError naming the file."""
        mask_HW = self.source.read(key)
        values = np.flatnonzero(np.bincount(mask_HW.ravel(), minlength=IGNORE + 1)).tolist()
        for value in values:
            self._first_holder.setdefault(value, self.source.name(key))
        if self._positive is not None:
            return self._of_two_values(mask_HW, values, key)
        strange = [value for value in values if self._num_classes is not None and self._num_classes <= value < IGNORE]
        if strange:
            raise MaskError(
                f"{self.source.name(key)}: holds {strange[0]}, but there are {self._num_classes} classes, "
                f"0 to {(self._num_classes or 1) - 1}. {_CONVERT_LEVELS}"
            )
        return mask_HW

    def _of_two_values(self, mask_HW: Mask, values: list[int], key: str) -> Mask:
        """Masks that are 0 and 1 already may lie among those that are 0 and `positive`."""
        if set(values) <= {0, self._positive}:
            return (mask_HW != 0).astype(np.uint8)
        if set(values) <= {0, 1}:
            return mask_HW
        raise MaskError(
            f"{self.source.name(key)}: holds {', '.join(map(str, values[:_NUM_NAMED]))}; with "
            f"{self._positive_key} {self._positive} a mask holds 0 and {self._positive} alone (or 0 and 1). "
            f"{_CONVERT_LEVELS}"
        )

    def check_all(self) -> None:
        """What only all masks together tell. Raises MaskError."""
        held = set(self._first_holder)
        if self._positive is None and self.source.classes is None and held <= {0, IGNORE} and IGNORE in held:
            raise MaskError(
                f"{self.source.place}: every mask holds only 0 and 255, such as {self._first_holder[IGNORE]}, and 255 "
                f"means ignore. If 255 is the foreground, set {self._positive_key} 255"
            )

    def check_indices(self, other: "MaskSide | None") -> None:
        """Without class names, values are taken for indices only where they look like it: few, and without a gap that
        the other side does not fill. Raises MaskError."""
        if self._positive is not None:
            return
        held = {value for value in self._first_holder if value != IGNORE}
        filled = held if other is None else held | set(other._first_holder)
        gap = next((value for value in range(self.highest_class) if value not in filled), None)
        if gap is None and len(held) <= _MOST_UNNAMED_CLASSES:
            return
        highest = self.highest_class
        found = f"holds {highest}, and no mask {gap}" if gap is not None else f"is one of {len(held)} values: {highest}"
        raise MaskError(
            f"{self._first_holder[highest]}: {found}. {_CONVERT_LEVELS}. If {highest} is the foreground, set "
            f"{self._positive_key} {highest}. If the values are class indices, give the number of classes: "
            f"--classes {highest + 1}, or their names: --classes a,b,c"
        )

    def check_values_of(self, other: "MaskSide") -> None:
        """Without class names, this side's values say how many classes there are. Raises MaskError."""
        strange = sorted(value for value in other._first_holder if self.highest_class < value < IGNORE)
        if strange and other._positive is None:
            raise MaskError(
                f"{other._first_holder[strange[0]]}: holds {strange[0]}, but no mask of {self.source.place} is above "
                f"{self.highest_class}. If both are of the same classes, name them all: --classes a,b,c"
            )


class _Pairs:
    """Predicted and true masks in the order of their names; read anew each time it is iterated."""

    def __init__(self, pred: MaskSide, truth: MaskSide, are_named: bool, are_clusters: bool) -> None:
        """are_named: the classes have names. are_clusters: predicted values are no classes."""
        self.pred, self.truth, self._are_named, self._are_clusters = pred, truth, are_named, are_clusters
        _check_names(pred.source, truth.source)

    def __iter__(self) -> Iterator[tuple[Mask, Mask]]:
        """Stops, with a MaskError, at the fifth pair that does not fit, or at the end if there are fewer."""
        problems: list[str] = []
        for key in self.truth.source.keys:
            try:
                pair = self._pair(key)
            except MaskError as error:
                problems.append(str(error))
            else:
                yield pair
            if len(problems) == _NUM_NAMED:
                break
        if problems:
            raise MaskError("\n  ".join(["masks that cannot be scored:", *problems]))
        self.pred.check_all()
        self.truth.check_all()
        if not self._are_named:
            self.truth.check_indices(None if self._are_clusters else self.pred)
        if not self._are_named and not self._are_clusters:
            self.truth.check_values_of(self.pred)

    def _pair(self, key: str) -> tuple[Mask, Mask]:
        pred_HW, truth_HW = self.pred.read(key), self.truth.read(key)
        if pred_HW.shape != truth_HW.shape:
            (pred_height, pred_width), (height, width) = pred_HW.shape, truth_HW.shape
            raise MaskError(
                f"{self.pred.source.name(key)}: is {pred_width} x {pred_height} pixels, "
                f"{self.truth.source.name(key)} {width} x {height}"
            )
        return pred_HW, truth_HW


def _check_names(pred: MaskSource, truth: MaskSource) -> None:
    """Raises MaskError unless both sides hold the same names."""
    alone = [
        (source.place, sorted(set(source.keys) - set(other.keys))) for source, other in ((pred, truth), (truth, pred))
    ]
    if not any(keys for _, keys in alone):
        return
    lines = [
        f"{pred.place} holds {len(pred.keys)} masks, {truth.place} {len(truth.keys)}; their names must be the same"
    ]
    for place, keys in alone:
        if keys:
            more = f" and {len(keys) - _NUM_NAMED} more" if len(keys) > _NUM_NAMED else ""
            lines.append(f"only in {place}: {', '.join(keys[:_NUM_NAMED])}{more}")
    raise MaskError("\n  ".join(lines))


def _class_names(
    pred: MaskSource, truth: MaskSource, given: Sequence[str] | None, matching: Matching | None
) -> tuple[str, ...] | None:
    """The classes, from whoever states them. Raises MaskError where two state different ones."""
    stated = [(truth.place, truth.classes), *([(pred.place, pred.classes)] if matching is None else [])]
    lists = [(place, classes) for place, classes in stated if classes is not None]
    if given is not None:
        _check_given(given)
        lists = [("--classes", tuple(given)), *lists]
    for place, classes in lists[1:]:
        if classes != lists[0][1] and (given is None or len(classes) != len(given)):
            raise MaskError(
                f"{place}: has {len(classes)} classes ({', '.join(classes)}), {lists[0][0]} {len(lists[0][1])} "
                f"({', '.join(lists[0][1])}); masks of different classes cannot be compared"
            )
    return lists[0][1] if lists else None


def given_classes(text: str) -> list[str]:
    """Class names from what a person types: `sky,road,car`, or how many there are."""
    if text.isdecimal():
        return [str(value) for value in range(min(int(text), IGNORE + 1))]
    return [name.strip() for name in text.split(",")]


def _check_given(names: Sequence[str]) -> None:
    if not 1 <= len(names) <= IGNORE or len(set(names)) != len(names) or "" in names:
        raise MaskError(
            f"--classes {','.join(names)}: give 1 to {IGNORE} different names, divided by commas, "
            f"or how many classes there are"
        )
