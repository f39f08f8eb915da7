"""labelmill from Python: what README shows, against what the command makes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.small_dataset import write_dataset

import labelmill
from labelmill.pipeline.dataset.manifest import read_manifest
from labelmill.pipeline.generator.sampling import to_uint8
from labelmill.pipeline.store.store import Store
from labelmill.schemas.errors import CheckpointError, ConfigError, OutputError


def test_a_generator_samples_labels_and_repeats() -> None:
    sampler = labelmill.open_generator("bundled:avatars-32", device="cpu", truncation_psi=0.5)
    labeler = labelmill.fit_labeler(sampler, "style_mixing", variants=4, fit_samples=16, restarts=1)
    batches = list(labelmill.label(sampler, labeler, range(20)))
    assert [len(batch) for batch, _ in batches] == [16, 4] and labeler.classes == ("background", "foreground")
    for batch, labels in batches:
        assert labels.masks_BHW.shape == (len(batch), 32, 32) and labels.masks_BHW.dtype == torch.uint8
        assert 0.1 < labels.masks_BHW.float().mean() < 0.9
    again = sampler.sample([3])
    assert torch.equal(again.images_BCHW[0], batches[0][0].images_BCHW[3])
    assert to_uint8(again.images_BCHW).shape == (1, 32, 32, 3)


def test_a_dataset_is_read_whole_or_by_split(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    manifest = read_manifest(Store.open(str(tmp_path)))
    samples = list(labelmill.read_dataset(str(tmp_path)))
    assert len(samples) == manifest.num_samples
    assert next(labelmill.read_dataset(tmp_path)).key == samples[0].key
    assert samples[0].image_HWC.shape == (*manifest.image_shape.size, 3)
    assert set(np.unique(samples[0].mask_HW)) <= {*range(len(manifest.classes)), 255}
    by_split = [
        sample.key for split in manifest.samples_by_split for sample in labelmill.read_dataset(str(tmp_path), split)
    ]
    assert sorted(by_split) == [sample.key for sample in samples]


def test_a_checkpoint_is_named_by_a_path_object_too() -> None:
    bundled = Path(labelmill.__path__[0]) / "pipeline/generator/bundled/avatars-32.safetensors"
    assert labelmill.open_generator(bundled, device="cpu").generator.spec.image_shape.size == (32, 32)


def test_numbers_of_numpy_are_numbers() -> None:
    sampler = labelmill.open_generator(
        "bundled:avatars-32", truncation_psi=np.float64(0.5), truncation_cutoff=np.int64(3)
    )
    assert (sampler.config.truncation_psi, sampler.config.truncation_cutoff) == (0.5, 3)
    with pytest.raises(ConfigError, match=r"^truncation_psi: a Tensor is not a setting; give a number"):
        labelmill.open_generator("bundled:avatars-32", truncation_psi=torch.tensor(0.5))


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"truncation_psl.*truncation_psi"):
        labelmill.open_generator("bundled:avatars-32", truncation_psl=0.5)
    with pytest.raises(CheckpointError, match="avatars-31"):
        labelmill.open_generator("bundled:avatars-31")
    with pytest.raises(OutputError, match=str(tmp_path)):
        labelmill.read_dataset(str(tmp_path))
    sampler = labelmill.open_generator("bundled:avatars-32", device="cpu")
    with pytest.raises(ConfigError, match=r"labeler\.crossover: 40"):
        labelmill.fit_labeler(sampler, "style_mixing", crossover=40)
    with pytest.raises(ConfigError, match="alpha_networc"):
        labelmill.fit_labeler(sampler, "alpha_networc")


def test_importing_it_takes_no_pytorch() -> None:
    code = "import sys, labelmill; print(labelmill.__version__, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [labelmill.__version__, "False"]
