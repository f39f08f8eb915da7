"""The few-shot benchmark as tables for people: `few_shot.md`."""

from collections.abc import Callable, Iterable

from labelmill.pipeline.benchmark.few_shot.results import FewShotBenchmark, FewShotResult, FilterPoint, Recipe, spread
from labelmill.pipeline.benchmark.markdown import markdown_table

# Tritrong et al., CVPR 2021; the README of DatasetGAN's code (features resized bilinearly, uncertainty from
# probabilities); Galeev et al., 2020, of a network that learned from the decoder's masks.
_PUBLISHED = (
    ("RepurposeGAN, CNN", "faces, 3 classes", "1 / 5 / 10", "weighted IoU", "71.7 / 82.1 / 83.5"),
    ("RepurposeGAN, CNN", "faces, 10 classes", "1 / 5 / 10", "weighted IoU", "77.9 / 83.9 / 85.2"),
    ("RepurposeGAN, auto-shot network", "faces, 10 classes", "", "weighted IoU", "84.5"),
    ("DatasetGAN, 10 MLPs", "faces, 34 classes", "16", "mIoU", "54.6"),
    ("DatasetGAN, 10 MLPs", "cars, 20 classes", "16", "mIoU", "67.5"),
    ("DatasetGAN, 10 MLPs", "cars of ADE20K, 12 classes", "16", "mIoU", "47.9"),
    ("DatasetGAN, 10 MLPs", "cats, 16 classes", "30", "mIoU", "32.6"),
    ("Galeev et al., decoder", "hair, 2 classes", "20", "mIoU", "82.4"),
    ("Galeev et al., decoder", "cars, 2 classes", "20", "mIoU", "94.1 (pretrained: 96.1)"),
)
_SHOWN_SHOTS = 10


def markdown(benchmark: FewShotBenchmark) -> str:
    """The page."""
    parts = [
        "# Masks from a few annotated images",
        _about(benchmark),
        _scores_table(benchmark),
        *_shortened(benchmark),
        "## By class",
        _classes_table(benchmark),
        "## Dropping what the head is least sure of",
        _filter_table(benchmark),
        "## Published",
        "Other domains (photos at 256 to 1024 px), other classes and judges: context, not a comparison.",
        markdown_table(("recipe", "images", "shots", "measure", "figure"), _PUBLISHED, num_texts=4),
    ]
    return "\n\n".join(parts) + "\n"


def _about(benchmark: FewShotBenchmark) -> str:
    known = benchmark.settings
    return (
        f"Oracle A annotates images of `{known.checkpoint}` ({known.resolution} px, psi {known.truncation_psi:g}) with "
        f"all {len(benchmark.ceiling.iou)} classes; each recipe learns from them and labels {known.num_test} other "
        f"images, which oracle B judges. Which images are annotated is drawn at random: mean ± standard deviation over "
        f"draws, percent, of one confusion matrix each. A class that no annotated image shows counts as 0. Seconds: "
        f"CPU time of a fit, without what it learns from images that nobody has annotated, on {known.device} with "
        f"{known.threads} thread. Nothing was chosen on the test images. The ceiling is oracle A against oracle B."
    )


def _shortened(benchmark: FewShotBenchmark) -> list[str]:
    """What was not measured with published settings."""
    lines = [f"- {recipe.title}: {recipe.shortened}" for recipe in benchmark.recipes if recipe.shortened]
    return ["Other than published:\n\n" + "\n".join(lines)] if lines else []


def _scores_table(benchmark: FewShotBenchmark) -> str:
    head = ("recipe", "shots", "draws", "mIoU", "weighted IoU", "fg/bg mIoU", "classes seen", "seconds")
    rows = [
        (recipe.title, str(shots), str(len(results)), *_figures(results))
        for recipe, shots, results in _groups(benchmark)
    ]
    ceiling, foreground = benchmark.ceiling, benchmark.ceiling_foreground
    top = ("ceiling", "", "", _percent(ceiling.miou), _percent(ceiling.fwiou), _percent(foreground.miou), "", "")
    return markdown_table(head, [*rows, top])


def _groups(benchmark: FewShotBenchmark) -> Iterable[tuple[Recipe, int, list[FewShotResult]]]:
    for recipe in benchmark.recipes:
        for shots in sorted({result.shots for result in benchmark.results if result.recipe == recipe.name}):
            yield recipe, shots, benchmark.of(recipe.name, shots)


def _figures(results: list[FewShotResult]) -> tuple[str, ...]:
    def figure(read: Callable[[FewShotResult], float | None]) -> str:
        middle, deviation = spread([read(result) or 0.0 for result in results])
        return _percent(middle) if deviation is None else f"{_percent(middle)} ± {_percent(deviation)}"

    seen, seconds = (
        spread([float(result.num_classes_seen) for result in results])[0],
        spread([result.seconds for result in results])[0],
    )
    return (
        figure(lambda result: result.scores.miou),
        figure(lambda result: result.scores.fwiou),
        figure(lambda result: result.foreground.miou),
        f"{seen:.1f}",
        f"{seconds:.1f}",
    )


def _classes_table(benchmark: FewShotBenchmark) -> str:
    classes = list(benchmark.ceiling.iou)
    rows = []
    for recipe, shots, results in _groups(benchmark):
        means = [spread([result.scores.iou[name] or 0.0 for result in results])[0] for name in classes]
        rows.append((f"{recipe.title}, {shots} shots", *map(_percent, means)))
    rows.append(("ceiling", *(_percent(value) for value in benchmark.ceiling.iou.values())))
    return markdown_table(("", *classes), rows)


def _filter_table(benchmark: FewShotBenchmark) -> str:
    recipe = benchmark.recipes[0]
    measured = {result.shots for result in benchmark.results if result.recipe == recipe.name}
    shots = min(measured, key=lambda number: abs(number - _SHOWN_SHOTS))
    results = benchmark.of(recipe.name, shots)
    rare = [name for name in ("hat", "glasses", "beard") if name in benchmark.ceiling.iou]
    rows = []
    for first in results[0].filtered:
        points = [_point(result, first.measure, first.kept) for result in results]
        correlation = spread([result.rank_correlation[first.measure] for result in results])[0]
        rows.append(
            (
                first.measure,
                f"{correlation:.2f}",
                f"{100 * first.kept:g}",
                _percent(spread([point.fwiou or 0.0 for point in points])[0]),
                _percent(spread([point.miou or 0.0 for point in points])[0]),
                *(f"{100 * spread([point.class_shares[name] for point in points])[0]:.2f}" for name in rare),
            )
        )
    shares = (f"{name}, share of pixels" for name in rare)
    about = (
        f"{recipe.title}, {shots} shots, mean over {len(results)} draws. Spearman: the rank correlation of an image's "
        f"uncertainty with the share of its pixels that are wrong. mIoU also changes because images with rare classes "
        f"are dropped or kept: their shares stand beside it."
    )
    head = ("by", "Spearman", "kept", "weighted IoU", "mIoU", *shares)
    return f"{about}\n\n{markdown_table(head, rows)}"


def _point(result: FewShotResult, measure: str, kept: float) -> FilterPoint:
    return next(point for point in result.filtered if (point.measure, point.kept) == (measure, kept))


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"
