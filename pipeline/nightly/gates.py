"""What tonight's snapshot must not differ in from the live one: a function a gate, higher values being worse."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from labelmill.schemas.nightly import GatesConfig
from labelmill.schemas.nightly_files import GateResult, Measures

# Shares of nothing count as so much in the index, as is common: its logarithm knows no zero.
PSI_FLOOR = 1e-4


def population_stability_index(expected: Sequence[float], actual: Sequence[float]) -> float:
    """Sum of (a - e) ln(a / e) over the shares e and a of expected and actual amounts, each at least PSI_FLOOR.

    Siddiqi, Credit Risk Scorecards (2006): below 0.1 no shift, above 0.25 a large one. The same as the sum of both
    Kullback-Leibler divergences, in nats. Where one side has no amount at all each of its shares counts as PSI_FLOOR:
    that is a large shift. 0 where both have none.
    """
    pairs = zip(_shares(expected), _shares(actual), strict=True)
    floored = [(max(e, PSI_FLOOR), max(a, PSI_FLOOR)) for e, a in pairs]
    return math.fsum((a - e) * math.log(a / e) for e, a in floored)


def jensen_shannon_divergence(expected: Sequence[float], actual: Sequence[float]) -> float:
    """Of the shares of two amounts, in bits: 0 for equal ones, 1 for disjoint ones (Lin, 1991)."""
    total = 0.0
    for e, a in zip(_shares(expected), _shares(actual), strict=True):
        middle = (e + a) / 2
        total += sum(share / 2 * math.log2(share / middle) for share in (e, a) if share > 0)
    return max(0.0, total)


def _shares(amounts: Sequence[float]) -> list[float]:
    whole = math.fsum(amounts)
    return [amount / whole if whole else 0.0 for amount in amounts]


def missing_samples(tonight: Measures, live: Measures) -> float:
    return _excess(1 - tonight.num_samples / live.num_samples)


def missing_files(tonight: Measures, live: Measures) -> float:
    return len({*live.optional_files} - {*tonight.optional_files})


def class_psi(tonight: Measures, live: Measures) -> float:
    return population_stability_index(*_by_class(tonight, live))


def class_js(tonight: Measures, live: Measures) -> float:
    return jensen_shannon_divergence(*_by_class(tonight, live))


def foreground_psi(tonight: Measures, live: Measures) -> float:
    return population_stability_index(live.foreground_histogram, tonight.foreground_histogram)


def empty_masks(tonight: Measures) -> float:
    return tonight.empty_masks


def confidence_drop(tonight: Measures, live: Measures) -> float:
    return _excess(live.confidence - tonight.confidence)


def brightness_shift(tonight: Measures, live: Measures) -> float:
    return abs(tonight.brightness - live.brightness)


def contrast_change(tonight: Measures, live: Measures) -> float:
    return _relative_change(tonight.contrast, live.contrast)


def near_duplicates(tonight: Measures) -> float:
    return tonight.near_duplicates


def near_duplicates_rise(tonight: Measures, live: Measures) -> float:
    return _excess(tonight.near_duplicates - live.near_duplicates)


def image_bytes_change(tonight: Measures, live: Measures) -> float:
    return _relative_change(tonight.image_bytes, live.image_bytes)


def throughput_drop(tonight: Measures, live: Measures) -> float | None:
    """None where one of them tells no times."""
    if tonight.throughput is None or live.throughput is None:
        return None
    return _excess(1 - tonight.throughput / live.throughput)


@dataclass(frozen=True)
class Gate:
    """A gate as it is shown. Its limit is the field of its name in GatesConfig."""

    name: str
    meaning: str
    compare: Callable[[Measures, Measures], float | None] | None = None
    """With the live snapshot, which it needs."""
    judge: Callable[[Measures], float] | None = None
    """Tonight's alone."""
    shown: Callable[[Measures], float | None] | None = None
    """The figure of each snapshot, where it is one number."""


GATES = (
    Gate("missing_samples", "share of samples fewer", missing_samples, shown=lambda m: m.num_samples),
    Gate("missing_files", "optional files fewer", missing_files, shown=lambda m: len(m.optional_files)),
    Gate("class_psi", "population stability index of class shares", class_psi),
    Gate("class_js", "Jensen-Shannon divergence of class shares, bits", class_js),
    Gate("foreground_psi", "population stability index of foreground sizes", foreground_psi),
    Gate("empty_masks", "share of masks without foreground", judge=empty_masks, shown=lambda m: m.empty_masks),
    Gate("confidence_drop", "mean confidence lower by", confidence_drop, shown=lambda m: m.confidence),
    Gate("brightness_shift", "difference of brightness", brightness_shift, shown=lambda m: m.brightness),
    Gate("contrast_change", "relative difference of contrast", contrast_change, shown=lambda m: m.contrast),
    Gate("near_duplicates", "share of near duplicates", judge=near_duplicates, shown=lambda m: m.near_duplicates),
    Gate(
        "near_duplicates_rise",
        "share of near duplicates higher by",
        near_duplicates_rise,
        shown=lambda m: m.near_duplicates,
    ),
    Gate(
        "image_bytes_change",
        "relative difference of bytes per sample",
        image_bytes_change,
        shown=lambda m: m.image_bytes,
    ),
    Gate(
        "throughput_drop",
        "share slower, in samples per second of work",
        throughput_drop,
        shown=lambda m: m.throughput,
    ),
)


def ask_gates(tonight: Measures, live: Measures | None, limits: GatesConfig) -> tuple[GateResult, ...]:
    """Every gate's verdict. What is not a number passes no gate."""
    return tuple(_ask(gate, tonight, live, getattr(limits, gate.name)) for gate in GATES)


def _ask(gate: Gate, tonight: Measures, live: Measures | None, limit: float | None) -> GateResult:
    value: float | None = None
    meaning, is_comparable = gate.meaning, True
    if gate.judge is not None:
        value = gate.judge(tonight)
    elif live is None:
        meaning, is_comparable = f"{meaning}; nothing is live to compare with", False
    else:
        assert gate.compare is not None
        value = gate.compare(tonight, live)
        if value is None:
            meaning, is_comparable = f"{meaning}; one of the two was repaired and has no times", False

    def verdict() -> str:
        if limit is None:
            return "off"
        if not is_comparable:
            return "skipped"
        return "passed" if value is not None and value <= limit else "failed"

    return GateResult.model_validate(
        {
            "name": gate.name,
            "verdict": verdict(),
            "tonight": gate.shown(tonight) if gate.shown else None,
            "live": gate.shown(live) if gate.shown and live is not None else None,
            "value": value if value is not None and math.isfinite(value) else None,
            "limit": limit,
            "meaning": meaning,
        }
    )


def _by_class(tonight: Measures, live: Measures) -> tuple[list[float], list[float]]:
    """Pixels of live and tonight by class, those that only one of them has included."""
    names = dict.fromkeys((*live.class_pixels, *tonight.class_pixels))
    return _amounts(live.class_pixels, names), _amounts(tonight.class_pixels, names)


def _amounts(pixels: Mapping[str, int], names: Mapping[str, None]) -> list[float]:
    return [float(pixels.get(name, 0)) for name in names]


def _excess(excess: float) -> float:
    """What is no excess is 0; what is not a number stays so, in this order of arguments alone."""
    return max(excess, 0.0)


def _relative_change(tonight: float, live: float) -> float:
    if live == 0:
        return 0.0 if tonight == 0 else math.inf
    return abs(tonight / live - 1)
