"""Distances in the log: thumbnails by hand, FID's features beside torch-fidelity's own, files that are no weights."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.small_trainings import discs, losses, make_config, open_trainer

from labelmill.pipeline.generator.training.frechet import frechet_distance
from labelmill.pipeline.generator.training.quality import load_inception
from labelmill.pipeline.generator.training.train import train_generator
from labelmill.schemas.errors import ConfigError


def test_the_log_holds_the_distance_of_thumbnails(folder: Path, tmp_path: Path) -> None:
    config = make_config(
        folder, tmp_path, total_images=80, sample_interval_images=80, log_interval_steps=10, monitor={"num_images": 300}
    )
    trainer = open_trainer(config)
    for _ in range(10):
        trainer.step()
    measured = trainer.distances()["thumbnail_distance"]

    z_NZ = torch.from_numpy(np.random.RandomState(0).randn(300, 16)).float()
    with torch.no_grad():
        fake = trainer.average.synthesize(trainer.average.map(z_NZ)).images_BCHW.clamp(-1, 1).numpy()
    real = np.concatenate([trainer.data.batch(start, 16).numpy() for start in range(0, 256, 16)])
    both = [images.reshape(-1, 3, 8, 2, 8, 2).mean(axis=(3, 5)).reshape(-1, 192) for images in (real, fake)]
    assert measured == pytest.approx(frechet_distance(*both), rel=1e-4)


def test_a_training_writes_it_at_each_sheet(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_config(
        folder, tmp_path, total_images=8 * 9, sample_interval_images=24, log_interval_steps=4,
        monitor={"num_images": 32},
    )  # fmt: skip
    train_generator(config)
    assert ["thumbnail_distance" in line for line in losses(tmp_path)] == [True, True]
    assert "quality: thumbnail_distance " in capsys.readouterr().err


def test_the_interval_of_the_log_may_change(folder: Path, tmp_path: Path) -> None:
    train_generator(make_config(folder, tmp_path, total_images=8 * 4, log_interval_steps=2))
    train_generator(make_config(folder, tmp_path, total_images=8 * 8, log_interval_steps=4, monitor={"num_images": 8}))
    assert [line["step"] for line in losses(tmp_path)] == [2, 4, 8]


class TestFid:
    def test_features_are_those_of_torch_fidelity(self, tmp_path: Path) -> None:
        pytest.importorskip("torch_fidelity", reason="of the extra `fid`, which brings a package called tests")
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        torch.manual_seed(0)
        weights = tmp_path / "inception.pth"
        empty = FeatureExtractorInceptionV3.__new__(FeatureExtractorInceptionV3)
        with pytest.MonkeyPatch.context() as patch:  # its random weights: no others can be had here
            patch.setattr(torch, "load", lambda *_, **__: {})
            patch.setattr(torch.nn.Module, "load_state_dict", lambda *_, **__: None)
            empty.__init__("inception", ["2048"], feature_extractor_weights_path="none")  # type: ignore[misc]
        torch.save(empty.state_dict(), weights)
        theirs = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(weights)).eval()
        images = torch.from_numpy(np.array(discs(2))).permute(0, 3, 1, 2)
        with torch.no_grad():
            expected = theirs(images)[0]
        found = load_inception(weights, torch.device("cpu"))(images.float() / 127.5 - 1)
        assert found.shape == (2, 2048) and torch.allclose(found, expected, atol=1e-5)

    def test_nothing_in_a_file_is_executed(self, tmp_path: Path) -> None:
        class Attack:
            def __reduce__(self) -> tuple[object, tuple[str]]:
                return Path.touch, (tmp_path / "executed",)  # type: ignore[return-value]

        (tmp_path / "bad.pth").write_bytes(pickle.dumps(Attack()))
        torch.save({"fc.weight": torch.zeros(3), "x": Attack()}, tmp_path / "worse.pth")
        torch.save({"fc.weight": torch.zeros(3)}, tmp_path / "other.pth")
        for name, words in (
            ("bad", "not readable"),
            ("worse", "not readable"),
            ("other", "not weights"),
            ("no", "not"),
        ):
            with pytest.raises(ConfigError, match=rf"monitor\.fid_weights: .*{name}\.pth: {words}"):
                load_inception(tmp_path / f"{name}.pth", torch.device("cpu"))
        assert not (tmp_path / "executed").exists()
