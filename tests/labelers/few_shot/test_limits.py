"""What few shots refuse or decide by measure: memory, annotation sets, and the label-free foreground."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.random_sampler import make_sampler
from helpers.small_annotations import CLASSES, sampler_of, sha256_of, write_small_annotations

from labelmill.pipeline.annotations.write import write_mask
from labelmill.pipeline.dataset.manifest import read_manifest
from labelmill.pipeline.generator.sampling import Sampler
from labelmill.pipeline.generator.spec import GeneratorSpec, channels_by_resolution
from labelmill.pipeline.labelers.few_shot import labeler as labeler_module
from labelmill.pipeline.labelers.few_shot.findings import few_shot_findings
from labelmill.pipeline.labelers.few_shot.fit import fit_few_shot
from labelmill.pipeline.labelers.few_shot.fitted import FittedFewShot
from labelmill.pipeline.labelers.few_shot.label_free import LabelFree, fit_label_free
from labelmill.pipeline.labelers.few_shot.labeler import (
    bytes_needed,
    bytes_to_fit,
    check_fit_memory,
    check_memory,
    tapped_layers,
)
from labelmill.pipeline.labelers.few_shot.method import METHOD
from labelmill.pipeline.labelers.few_shot.shots import shots_of_seeds
from labelmill.pipeline.store.store import Store
from labelmill.schemas.config import RunConfig
from labelmill.schemas.errors import ConfigError
from labelmill.schemas.fingerprint import identity
from labelmill.schemas.labelers.few_shot import FewShotConfig
from labelmill.schemas.yaml_file import load_config
from labelmill.workers.generate import generate

MIXING = {"variants": 2, "crossover": 3, "clusters": 4, "restarts": 1, "iterations": 2, "fit_samples": 16}
SMALL = {
    "method": "few_shot",
    "annotations": "annotations",
    "head": {"type": "linear", "components": 8, "steps": 5, "members": 2},
    "style_mixing": MIXING,
    "statistics_samples": 4,
    "statistics_variants": 2,
    "calibration_samples": 16,
}
# StyleGAN2's published configuration F at 1024 px.
CONFIG_F = GeneratorSpec(
    resolution=1024,
    z_dim=512,
    w_dim=512,
    c_dim=0,
    mapping_layers=8,
    channels=channels_by_resolution(1024, channel_base=32768, channel_max=512),
)


def make_config(**settings: object) -> FewShotConfig:
    return FewShotConfig.model_validate({**SMALL, **settings})


@pytest.mark.parametrize("head", ["linear", "mlp", "cnn", "decoder"])
def test_a_published_generator_of_1024_px_is_labeled_within_4_gib(head: str) -> None:
    config = make_config(head={"type": head}, normalisation="style" if head == "linear" else "none")
    assert bytes_needed(config, CONFIG_F, num_classes=11, batch_size=16) < 4 * 2**30


def test_all_layers_of_1024_px_take_4_gib_in_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(head={"type": "linear"}, layers=list(CONFIG_F.conv_names))
    assert tapped_layers(config, CONFIG_F) == CONFIG_F.conv_names
    features = sum(width * size**2 * (1 if size == 4 else 2) for size, width in CONFIG_F.channels)
    assert features == 131_407_872  # 501 MiB per image
    whole, two = (bytes_needed(config, CONFIG_F, num_classes=11, batch_size=size) for size in (16, 2))
    assert whole > 4 * features * 16 and two < 4 * 2**30
    sampler = make_sampler()
    monkeypatch.setattr(labeler_module, "free_bytes", lambda device: 4 * 2**30)
    monkeypatch.setattr(sampler.generator, "spec", CONFIG_F)
    sampler.numerics = sampler.numerics.model_copy(update={"batch_size": 16})
    with pytest.raises(
        ConfigError, match=r"17 convolutions and 11 classes need 9\.3 GiB .* has 4\.0 GiB left; .*batch_size 5 fits"
    ):
        check_memory(config, sampler, 11)


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    return make_sampler()


@pytest.fixture(scope="module")
def label_free(sampler: Sampler) -> LabelFree:
    return fit_label_free(make_config(), sampler)


def found_foreground(sampler: Sampler, label_free: LabelFree, seeds: list[int], **settings: object) -> FittedFewShot:
    """Annotations that are just the label-free foreground, or with `turned` its opposite."""
    turned = settings.pop("turned", False)
    assert label_free.mixing is not None
    batches = sampler.batches(seeds, label_free.mixing.readout.layers)
    maps = np.concatenate([label_free.mixing.readout(batch.features)[0][:, 0].numpy() for batch in batches])
    masks_NHW = ((maps > 0.5) != turned).astype(np.uint8)
    shots = shots_of_seeds(sampler, seeds, masks_NHW, ("background", "thing"))
    return fit_few_shot(make_config(**settings), sampler, shots, None, label_free)


def test_the_label_free_foreground_is_used_where_it_agrees(sampler: Sampler, label_free: LabelFree) -> None:
    agreeing = found_foreground(sampler, label_free, [1, 2])
    assert agreeing.provenance.foreground_agreement == 1 and agreeing.mixing is not None
    assert any(
        "agrees by 100.0% with them and is used" in line for line in few_shot_findings(agreeing.provenance).words
    )
    opposed = found_foreground(sampler, label_free, [1, 2], turned=True)
    assert opposed.provenance.foreground_agreement == 0 and opposed.mixing is None
    assert any(
        "agrees by 0.0% with them and is not used" in line for line in few_shot_findings(opposed.provenance).words
    )
    assert found_foreground(sampler, label_free, [1, 2], turned=True, foreground="label_free").mixing is not None
    assert found_foreground(sampler, label_free, [1, 2], foreground="learned").mixing is None


def test_annotations_count_by_content_not_by_place(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_small_annotations(tmp_path / name, tiny_checkpoint)
    configs = {name: make_config(annotations=str(tmp_path / name)) for name in ("one", "two")}

    def identity_of(name: str) -> dict[str, object]:
        values = {"name": "x", "output": "y", "generator": {"checkpoint": "z"}, "dataset": {"samples": 1}}
        run = RunConfig.model_validate({**values, "labeler": configs[name].model_dump()})
        return identity(run, "a" * 64, METHOD.inputs(configs[name]))

    assert identity_of("one") == identity_of("two")
    assert str(tmp_path) not in str(identity_of("one"))
    write_mask(tmp_path / "two", "0000000003", np.ones((32, 32), np.uint8))
    assert identity_of("one") != identity_of("two")
    sampler = sampler_of(tiny_checkpoint)
    METHOD.check_inputs(configs["one"], sampler, sha256_of(tiny_checkpoint))
    with pytest.raises(ConfigError, match=f"{sha256_of(tiny_checkpoint)}, this generator's {'b' * 64}"):
        METHOD.check_inputs(configs["one"], sampler, "b" * 64)


def test_a_run_drops_what_the_head_is_unsure_of(
    write_run_file: Callable[..., Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    write_small_annotations(tmp_path / "annotations", tiny_checkpoint, seeds=(3, 1, 8))
    path = write_run_file(
        dataset={"samples": 12},
        quality={"enabled": True, "foreground_min": 0, "foreground_max": 1, "confidence_min": 0}
        | {"largest_component_min": 0},
    )
    few = make_config(annotations=str(tmp_path / "annotations"), drop_portion=0.4)
    generate(load_config(path, RunConfig).model_copy(update={"labeler": few}))
    manifest = read_manifest(Store.open(str(tmp_path / "out")))
    assert manifest.classes == list(CLASSES) and set(manifest.dropped_by_reason) == {"uncertain"}
    assert 0.1 < manifest.dropped_by_reason["uncertain"] / manifest.num_candidates < 0.7


@pytest.mark.parametrize(
    ("head", "per_image"),
    # Features of all layers up to 256 px, those of 4,096 pixels twice, and those of the blocks up to 128 px.
    [("cnn", 4 * 30_744_576), ("mlp", 2 * 4 * 4096 * 5376), ("decoder", 4 * 6_987_776)],
)
def test_annotated_images_that_do_not_fit_are_refused(
    head: str, per_image: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(head={"type": head}, normalisation="none", foreground="learned")
    assert bytes_to_fit(config, CONFIG_F, 100) == 100 * per_image
    sampler = make_sampler()
    monkeypatch.setattr(labeler_module, "free_bytes", lambda device: 20 * per_image)
    monkeypatch.setattr(sampler.generator, "spec", CONFIG_F)
    check_fit_memory(config, sampler, 20)
    with pytest.raises(
        ConfigError, match=rf"labeler\.annotations: features of 21 images need .* GiB for a {head} head"
    ):
        check_fit_memory(config, sampler, 21)
