"""A generator that was never trained is told from one that was, by far."""

import pytest
import torch
from helpers.random_sampler import make_sampler

from labelmill.pipeline.check_run import check_strength
from labelmill.pipeline.generator.checkpoints import open_checkpoint
from labelmill.pipeline.generator.networks import Generator, GeneratorSpec, channels_by_resolution
from labelmill.pipeline.generator.sampling import Sampler
from labelmill.pipeline.labelers.fitted_file import read_fitted
from labelmill.pipeline.labelers.methods import fit_to_bytes, open_fitted
from labelmill.pipeline.labelers.style_mixing.findings import WEAK_SEPARATION
from labelmill.pipeline.labelers.style_mixing.fitted import MixingProvenance
from labelmill.pipeline.labelers.style_mixing.foreground import separation_of
from labelmill.schemas.config import GeneratorConfig, NumericsConfig, RunConfig
from labelmill.schemas.errors import ConfigError
from labelmill.schemas.labeler_findings import LabelerFindings
from labelmill.schemas.labelers.feature_clusters import FeatureClustersConfig
from labelmill.schemas.labelers.style_mixing import StyleMixingConfig
from labelmill.schemas.yaml_file import validate

QUICK = StyleMixingConfig(variants=4, crossover=3, clusters=4, restarts=2, iterations=4, fit_samples=16)


def _sampler(generator: Generator) -> Sampler:
    return Sampler(generator, GeneratorConfig(checkpoint="x"), NumericsConfig(batch_size=16, threads=1), "cpu")


def _random(seed: int, resolution: int, width: int) -> Sampler:
    torch.manual_seed(seed)
    channels = channels_by_resolution(resolution, channel_base=16 * width, channel_max=width)
    spec = GeneratorSpec(resolution=resolution, z_dim=32, w_dim=32, c_dim=0, mapping_layers=2, channels=channels)
    return _sampler(Generator(spec))


def _judged(sampler: Sampler) -> tuple[float, LabelerFindings]:
    fitted = fit_to_bytes(QUICK, sampler)
    _, tensors = read_fitted(fitted, MixingProvenance)
    return separation_of(tensors["foreground.sharpness"]), open_fitted(QUICK, sampler, fitted).findings


@pytest.mark.parametrize(("seed", "resolution", "width"), [(0, 32, 16), (1, 32, 16), (2, 16, 8), (3, 64, 64)])
def test_an_untrained_generator_is_weak_by_a_wide_margin(seed: int, resolution: int, width: int) -> None:
    separation, findings = _judged(_random(seed, resolution, width))
    assert separation < 0.85 * WEAK_SEPARATION
    assert findings.verdict == "weak" and "weak: no foreground was found" in findings.words[-1]


def test_the_bundled_generator_is_sound_by_a_wide_margin() -> None:
    separation, findings = _judged(_sampler(open_checkpoint("bundled:avatars-32").generator))
    assert separation > 1.4 * WEAK_SEPARATION
    assert findings.verdict == "sound" and len(findings.words) == 2
    assert "classes: background, foreground; on average 3" in findings.words[0]


def test_clusters_of_an_untrained_generator_are_weak_and_those_of_the_bundled_one_are_not() -> None:
    config = FeatureClustersConfig(method="feature_clusters", clusters=4, fit_samples=16, naming_samples=8)
    trained = _sampler(open_checkpoint("bundled:avatars-32").generator)
    untrained = make_sampler(resolution=32)
    assert open_fitted(config, trained, fit_to_bytes(config, trained)).findings.verdict == "sound"
    weak = open_fitted(config, untrained, fit_to_bytes(config, untrained)).findings
    assert weak.verdict == "weak" and "masks would mean nothing" in weak.words[-1]


def _config(allow: bool) -> RunConfig:
    values = {
        "name": "run",
        "output": "out",
        "generator": {"checkpoint": "x"},
        "dataset": {"samples": 1},
        "quality": {"allow_weak_labeler": allow},
    }
    return validate(values, "test", RunConfig)


def test_a_weak_labeler_is_refused_unless_allowed_and_then_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    weak = LabelerFindings(verdict="weak", words=["nothing was found"])
    with pytest.raises(ConfigError, match=r"nothing was found\n.*quality\.allow_weak_labeler: true"):
        check_strength(_config(allow=False), weak)
    check_strength(_config(allow=True), weak)
    assert "labeler: nothing was found" in capsys.readouterr().err
    check_strength(_config(allow=False), weak.model_copy(update={"verdict": "doubtful"}))
    assert "labeler: nothing was found" in capsys.readouterr().err
    check_strength(_config(allow=False), weak.model_copy(update={"verdict": "sound"}))
    assert capsys.readouterr().err == ""
