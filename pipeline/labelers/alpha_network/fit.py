"""Fitting the alpha-network labeler: choose a background, train, watch, start again where a training collapses.

All of a fit follows from its configuration and generator, and a state is saved after every look: a fit that was killed
resumes from the last one, to the same bytes.

Shape suffixes: B batch, H height, W width.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import cast

from torch import Tensor

from labelmill.pipeline.generator.sampling import Batch, Sampler
from labelmill.pipeline.generator.spec import GeneratorSpec, row_resolution
from labelmill.pipeline.labelers.alpha_network.background import (
    check_background,
    choose_switch,
    measure_switches,
)
from labelmill.pipeline.labelers.alpha_network.fitted import AlphaProvenance, Attempt, FittedAlphaNetwork
from labelmill.pipeline.labelers.alpha_network.labels4free_network import READ_CHANNELS, published_layers
from labelmill.pipeline.labelers.alpha_network.network import AlphaNetwork, default_layers
from labelmill.pipeline.labelers.alpha_network.reals import Reals, check_reals
from labelmill.pipeline.labelers.alpha_network.restarts import adjusted
from labelmill.pipeline.labelers.alpha_network.trainer import AlphaTrainer, Weights
from labelmill.pipeline.labelers.alpha_network.watch import (
    Collapse,
    Look,
    collapse_of,
    first_judged,
    look_at,
    step_to_take,
    watched,
)
from labelmill.pipeline.labelers.common.decision import images_at_once
from labelmill.pipeline.process.device import repeatable_kernels
from labelmill.pipeline.process.log import log
from labelmill.pipeline.process.memory import free_bytes
from labelmill.pipeline.training.state import latest_state, read_progress, read_tensors, write_state
from labelmill.schemas.errors import ConfigError, LabelmillError
from labelmill.schemas.labelers.alpha_network import AlphaNetworkConfig

_SWITCH_IMAGES = 32
_LOG_SECONDS = 10.0


OnLook = Callable[[int, AlphaNetwork], None]
"""Is told a step and the averaged network after it, at every look."""


class CollapseError(LabelmillError):
    """Every training of an alpha network collapsed."""

    def __init__(self, attempts: Sequence[Attempt]) -> None:
        super().__init__(_complaint(attempts))
        self.attempts = tuple(attempts)


def check_alpha_network(config: AlphaNetworkConfig, sampler: Sampler) -> None:
    """Raises ConfigError where the generator lacks a layer, or makes images that are like no real ones."""
    spec = sampler.generator.spec
    unknown = [name for name in config.layers or () if name not in spec.conv_names]
    if unknown:
        raise ConfigError(
            f"labeler.layers: {', '.join(unknown)}, but this generator has {', '.join(spec.conv_names)}; choose among "
            f"these, or null"
        )
    check_background(config, spec)
    check_reals(config, spec)
    training = 0 if config.weights is not None else config.batch_size
    batch_size = max(training, sampler.numerics.batch_size)
    needed, free = bytes_needed(config, spec, batch_size), free_bytes(sampler.device)
    if needed > free:
        raise ConfigError(
            f"labeler.layers: features of {batch_size} images need {needed / 2**30:.1f} GiB beside the generator, and "
            f"the {sampler.device.type.upper()} has {free / 2**30:.1f} GiB left; lower numerics.batch_size"
            f"{' and labeler.batch_size, or take lower layers' if training else ''}"
        )


def bytes_needed(config: AlphaNetworkConfig, spec: GeneratorSpec, batch_size: int) -> int:
    """What a batch holds at least beside the generator: the network's features at their own resolutions, and for the
    images that are decided together three of its maps at theirs."""
    names = config.layers or (default_layers(spec) if config.weights is None else published_layers(spec))
    width = config.width if config.weights is None else 4 * READ_CHANNELS
    widths = dict(spec.channels)
    resolutions = [row_resolution(spec.conv_names.index(name)) for name in names]
    features = sum(widths[resolution] * prod(spec.size_at(resolution)) for resolution in resolutions)
    at_once = images_at_once(spec.image_size, batch_size)
    return 4 * (batch_size * features + at_once * 3 * width * prod(spec.image_size))


def fit_alpha_network(
    config: AlphaNetworkConfig,
    sampler: Sampler,
    work: Path,
    checkpoint_sha256: str | None = None,
    on_look: OnLook | None = None,
) -> FittedAlphaNetwork:
    """Train an alpha network. Raises CollapseError where the last restart collapsed, too."""
    check_alpha_network(config, sampler)
    with repeatable_kernels(gradients=True):
        return _Fit(config, at_psi_of_fit(config, sampler), work, checkpoint_sha256, on_look).run()


def at_psi_of_fit(config: AlphaNetworkConfig, sampler: Sampler) -> Sampler:
    """The same generator for the images of `fit`."""
    generator_config = sampler.config.model_copy(update={"truncation_psi": config.truncation_psi})
    return Sampler(sampler.generator, generator_config, sampler.numerics, sampler.device)


@dataclass
class _Attempt:
    """A training at work."""

    number: int
    trainer: AlphaTrainer
    looks: list[Look] = field(default_factory=list)
    kept: dict[str, Tensor] | None = None
    """The averaged network of the step to take, so far."""

    @property
    def first_judged(self) -> int:
        return first_judged(self.trainer.config, self.trainer.weights.binarisation_end)

    def collapse(self) -> Collapse | None:
        return collapse_of(self.looks, self.first_judged)


class _Fit:
    def __init__(
        self,
        config: AlphaNetworkConfig,
        sampler: Sampler,
        work: Path,
        checkpoint_sha256: str | None,
        on_look: OnLook | None,
    ) -> None:
        self.config, self.sampler, self.checkpoint_sha256 = config, sampler, checkpoint_sha256
        self.on_look = on_look
        self.layers = tuple(config.layers or default_layers(sampler.generator.spec))
        self.reals = None if config.reals is None else Reals(config, sampler, work / "reals")
        self.states = work / "states"
        self.deviations = self._deviations()
        self.backgrounds = measure_switches(config, sampler, list(self._watched(_SWITCH_IMAGES)))
        self.switch = choose_switch(self.backgrounds)
        self.finished: list[Attempt] = []
        self._next_log = time.monotonic() + _LOG_SECONDS

    def run(self) -> FittedAlphaNetwork:
        attempt = self._restored() or self._begin(0, Weights.of(self.config))
        while (collapse := self._train(attempt)) is not None:
            self._finish(attempt, collapse)
            if attempt.number == self.config.restarts:
                raise CollapseError(self.finished)
            weights = adjusted(attempt.trainer.weights, collapse)
            log(f"alpha network: {collapse.words}: starts again with {_changes(attempt.trainer.weights, weights)}")
            attempt = self._begin(attempt.number + 1, weights)
            self._save(attempt)
        self._finish(attempt, None)
        return self._fitted(attempt)

    def _begin(self, number: int, weights: Weights) -> _Attempt:
        trainer = AlphaTrainer(self.config, self.sampler, self.layers, self.switch, self.reals, weights, number)
        trainer.set_deviations(self.deviations)
        return _Attempt(number, trainer)

    def _train(self, attempt: _Attempt) -> Collapse | None:
        """Train to the end, or to a collapse."""
        trainer, steps, interval = attempt.trainer, self.config.steps, self.config.watch_interval
        while attempt.collapse() is None and trainer.num_steps < steps:
            trainer.step()
            if trainer.num_steps % interval == 0 or trainer.num_steps == steps:
                self._look(attempt)
                self._save(attempt)
        return attempt.collapse()

    def _look(self, attempt: _Attempt) -> None:
        network = attempt.trainer.average
        look = look_at(network, self._watched(self.config.watch_samples), attempt.trainer.num_steps)
        attempt.looks.append(look)
        if self.on_look is not None:
            self.on_look(look.step, network)
        if step_to_take(attempt.looks, attempt.first_judged) == look.step:
            attempt.kept = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        if time.monotonic() > self._next_log:
            self._next_log = time.monotonic() + _LOG_SECONDS
            log(
                f"alpha network: step {look.step} of {self.config.steps}: {look.coverage:.0%} foreground, edges "
                f"{look.edges:.2f} times as strong along its boundaries as elsewhere"
            )

    def _finish(self, attempt: _Attempt, collapse: Collapse | None) -> None:
        kind, words = (None, "") if collapse is None else (collapse.kind, collapse.words)
        self.finished.append(
            Attempt(weights=attempt.trainer.weights, looks=tuple(attempt.looks), collapse=kind, words=words)
        )

    def _fitted(self, attempt: _Attempt) -> FittedAlphaNetwork:
        spec, network, step = self.sampler.generator.spec, attempt.trainer.average, None
        step = step_to_take(attempt.looks, attempt.first_judged)
        assert step is not None and attempt.kept is not None, "the last step is looked at, and judged"
        network.load_state_dict(attempt.kept)
        provenance = AlphaProvenance(
            config=self.config,
            checkpoint_sha256=self.checkpoint_sha256,
            resolution=spec.resolution,
            num_ws=spec.num_ws,
            w_dim=spec.w_dim,
            layers=self.layers,
            background=str(self.switch),
            backgrounds={str(switch): figures for switch, figures in self.backgrounds.items()},
            attempts=tuple(self.finished),
            step=step,
        )
        return FittedAlphaNetwork(provenance, network)

    def _watched(self, count: int) -> Iterator[Batch]:
        return watched(self.config, self.sampler, self.layers, count)

    def _deviations(self) -> dict[str, float]:
        """Standard deviation of each layer's features, over images and channels."""
        squares = dict.fromkeys(self.layers, 0.0)
        sums, counts = dict(squares), dict.fromkeys(self.layers, 0)
        for batch in self._watched(_SWITCH_IMAGES):
            for name, features_BCHW in batch.features.items():
                features_BCHW = features_BCHW.double()
                squares[name] += float(features_BCHW.square().sum())
                sums[name] += float(features_BCHW.sum())
                counts[name] += features_BCHW.numel()
        variances = {name: squares[name] / counts[name] - (sums[name] / counts[name]) ** 2 for name in self.layers}
        return {name: max(variance, 1e-12) ** 0.5 for name, variance in variances.items()}

    # What a killed fit resumes from.

    def _save(self, attempt: _Attempt) -> None:
        trainer = attempt.trainer
        progress = {
            "identity": self._identity(),
            "attempt": attempt.number,
            "weights": trainer.weights.model_dump(),
            "num_steps": trainer.num_steps,
            "optimiser_steps": trainer.optimiser.num_steps,
            "discriminator_optimiser_steps": trainer.discriminator_optimiser.num_steps,
            "looks": [look.model_dump() for look in attempt.looks],
            "finished": [finished.model_dump(mode="json") for finished in self.finished],
        }
        kept = {} if attempt.kept is None else {"kept": attempt.kept}
        number = attempt.number * (self.config.steps + 1) + trainer.num_steps
        write_state(self.states, number, {**trainer.tensors(), **kept}, progress)

    def _restored(self) -> _Attempt | None:
        state = latest_state(self.states)
        if state is None:
            return None
        progress = read_progress(state)
        if progress.get("identity") != self._identity():
            return None
        attempt = self._begin(cast(int, progress["attempt"]), Weights.model_validate(progress["weights"]))
        trainer = attempt.trainer
        for name, own in trainer.tensors().items():
            for key, tensor in read_tensors(state, name, like=own).items():
                own[key].data.copy_(tensor)
        trainer.num_steps = cast(int, progress["num_steps"])
        trainer.optimiser.num_steps = cast(int, progress["optimiser_steps"])
        trainer.discriminator_optimiser.num_steps = cast(int, progress["discriminator_optimiser_steps"])
        attempt.looks = [Look.model_validate(look) for look in cast(list[object], progress["looks"])]
        self.finished = [Attempt.model_validate(one) for one in cast(list[object], progress["finished"])]
        if step_to_take(attempt.looks, attempt.first_judged) is not None:
            attempt.kept = read_tensors(state, "kept", like=trainer.average.state_dict())
        log(f"alpha network: resumes at step {trainer.num_steps} of {self.config.steps}")
        return attempt

    def _identity(self) -> dict[str, object]:
        """What a saved training must have been about."""
        return {"config": self.config.model_dump(mode="json"), "checkpoint_sha256": self.checkpoint_sha256}


def _changes(before: Weights, after: Weights) -> str:
    values = after.model_dump()
    changed = [f"{name} {value:g}" for name, value in values.items() if value != getattr(before, name)]
    return ", ".join(changed) or "other initial weights"


def _complaint(attempts: Sequence[Attempt]) -> str:
    seen = [
        f"training {number}, step {attempt.looks[-1].step}: {attempt.words}"
        for number, attempt in enumerate(attempts, 1)
    ]
    is_drifting = attempts[-1].collapse == "drifting"
    remedy = ["Fewer labeler.steps may stop where masks were best, before they drift"] if is_drifting else []
    return "\n  ".join(
        [
            f"labeler: the alpha network collapsed in each of {len(attempts)} trainings:",
            *seen,
            *remedy,
            "Try other labeler.layers, another labeler.background, a generator that is trained further, or "
            "labeler.method: style_mixing",
        ]
    )
