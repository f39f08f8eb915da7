"""`labelmill benchmark`: a flag per benchmark, in the order in which they run."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer


@dataclass(frozen=True)
class _Asked:
    """What every benchmark is given."""

    out: str
    checkpoint: str
    quick: bool
    training_seeds: int | None


def benchmark(
    masks: Annotated[bool, typer.Option("--masks", help="Mask quality per method and setting.")] = False,
    downstream: Annotated[
        bool, typer.Option("--downstream", help="Networks trained on each method's masks and on exact masks.")
    ] = False,
    speed: Annotated[
        bool, typer.Option("--speed", help="Labeled images per second and time per stage, on random weights.")
    ] = False,
    classes: Annotated[bool, typer.Option("--classes", help="Semantic classes from clusters and prompts.")] = False,
    few_shot: Annotated[
        bool, typer.Option("--few-shot", help="Classes from a few annotated images, by recipe and their number.")
    ] = False,
    alpha: Annotated[
        bool, typer.Option("--alpha", help="The alpha network by training seed and step, and spoilt on purpose.")
    ] = False,
    promise: Annotated[
        bool,
        typer.Option("--promise", help="Whether promises about kept masks hold, over redraws of annotated images."),
    ] = False,
    photos: Annotated[
        bool, typer.Option("--photos", help="Masks of drawings that the generator has not made, through its latents.")
    ] = False,
    network: Annotated[
        bool, typer.Option("--network", help="A supervised network as labeler, and as judge of others' masks.")
    ] = False,
    instances: Annotated[
        bool, typer.Option("--instances", help="Masks inside boxes: people side by side, and parts of portraits.")
    ] = False,
    out: Annotated[str, typer.Option(help="Folder for tables and pictures; rerun to resume.")] = "out/benchmark",
    quick: Annotated[
        bool,
        typer.Option(
            "--quick/--full",
            help="--quick: a small sample for a CPU (wide confidence intervals); --full: everything.",
        ),
    ] = False,
    training_seeds: Annotated[
        int | None, typer.Option(min=1, help="Networks per row of --downstream (default 1 with --quick, else 3).")
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="Generator to label.")] = "bundled:avatars-32",
) -> None:
    """Measure labelmill on this machine: the selected benchmarks, or all of them."""
    wanted = {
        "few_shot": few_shot,
        "alpha": alpha,
        "promise": promise,
        "photos": photos,
        "network": network,
        "instances": instances,
        "speed": speed,
        "masks": masks,
        "downstream": downstream,
        "classes": classes,
    }
    asked = _Asked(out, checkpoint, quick, training_seeds)
    for name, run in _BENCHMARKS.items():
        if wanted[name] or not any(wanted.values()):
            run(asked)
            print(f"{out.rstrip('/')}/{name}.md")


def _few_shot(asked: _Asked) -> None:
    from labelmill.pipeline.benchmark.few_shot.run import FULL, QUICK, benchmark_few_shot
    from labelmill.pipeline.process.device import choose_device
    from labelmill.pipeline.store.store import Store

    extent = QUICK if asked.quick else FULL
    benchmark_few_shot(Store.open(asked.out), asked.checkpoint, choose_device(), extent, tell=print)


def _alpha(asked: _Asked) -> None:
    from labelmill.pipeline.benchmark.alpha.run import FULL, QUICK, benchmark_alpha
    from labelmill.pipeline.process.device import choose_device
    from labelmill.pipeline.store.store import Store

    extent = QUICK if asked.quick else FULL
    benchmark_alpha(Store.open(asked.out), asked.checkpoint, choose_device(), extent, tell=print)


def _promise(asked: _Asked) -> None:
    from labelmill.pipeline.benchmark.promise.run import FULL, QUICK, benchmark_promise
    from labelmill.pipeline.process.device import choose_device
    from labelmill.pipeline.store.store import Store

    extent = QUICK if asked.quick else FULL
    benchmark_promise(Store.open(asked.out), asked.checkpoint, choose_device(), extent, tell=print)


def _photos(asked: _Asked) -> None:
    from labelmill.pipeline.benchmark.photos.run import FULL, QUICK, benchmark_photos
    from labelmill.pipeline.process.device import choose_device

    extent = QUICK if asked.quick else FULL
    benchmark_photos(Path(asked.out), asked.checkpoint, choose_device(), extent, tell=print)


def _network(asked: _Asked) -> None:
    from labelmill.pipeline.benchmark.network.run import FULL, QUICK, benchmark_network
    from labelmill.pipeline.process.device import choose_device

    extent = QUICK if asked.quick else FULL
    benchmark_network(Path(asked.out), asked.checkpoint, choose_device(), extent, tell=print)


def _instances(asked: _Asked) -> None:
    from labelmill.pipeline.benchmark.instances.run import FULL, QUICK, benchmark_instances
    from labelmill.pipeline.process.device import choose_device

    extent = QUICK if asked.quick else FULL
    benchmark_instances(Path(asked.out), asked.checkpoint, choose_device(), extent, tell=print)


def _speed(asked: _Asked) -> None:
    from labelmill.pipeline.benchmark.speed.run import benchmark_speed, speed_plan
    from labelmill.pipeline.process.device import choose_device
    from labelmill.pipeline.store.store import Store

    benchmark_speed(Store.open(asked.out), speed_plan(choose_device().type, quick=asked.quick), tell=print)


def _masks(asked: _Asked) -> None:
    from labelmill.pipeline.benchmark.masks.run import benchmark_masks
    from labelmill.pipeline.process.device import choose_device
    from labelmill.pipeline.store.store import Store

    benchmark_masks(Store.open(asked.out), asked.checkpoint, choose_device(), asked.quick, tell=print)


def _downstream(asked: _Asked) -> None:
    from labelmill.pipeline.benchmark.downstream.run import FULL, QUICK, benchmark_downstream
    from labelmill.pipeline.process.device import choose_device
    from labelmill.pipeline.store.store import Store

    extent = QUICK if asked.quick else FULL
    extent = replace(extent, num_seeds=asked.training_seeds or extent.num_seeds)
    benchmark_downstream(Store.open(asked.out), asked.checkpoint, choose_device(), extent, tell=print)


def _classes(asked: _Asked) -> None:
    from labelmill.pipeline.benchmark.classes.run import benchmark_classes
    from labelmill.pipeline.process.device import choose_device
    from labelmill.pipeline.store.store import Store

    benchmark_classes(Store.open(asked.out), asked.checkpoint, choose_device(), asked.quick, tell=print)


_BENCHMARKS: dict[str, Callable[[_Asked], None]] = {
    "few_shot": _few_shot,
    "alpha": _alpha,
    "promise": _promise,
    "photos": _photos,
    "network": _network,
    "instances": _instances,
    "speed": _speed,
    "masks": _masks,
    "downstream": _downstream,
    "classes": _classes,
}
