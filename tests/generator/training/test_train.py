"""Training: it learns, resumes exactly, survives kills, grows, and reads every kind of data."""

import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from helpers.random_sampler import make_sampler
from helpers.small_trainings import RESOLUTION, discs, losses, make_config, open_trainer, write_discs
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from labelmill.pipeline.generator.checkpoints import open_checkpoint
from labelmill.pipeline.generator.networks import Generator
from labelmill.pipeline.generator.training.draws import Draws
from labelmill.pipeline.generator.training.growth import TrainingFailedError
from labelmill.pipeline.generator.training.images import TrainingImages
from labelmill.pipeline.generator.training.optimiser import SecondMomentAdam
from labelmill.pipeline.generator.training.saving import save
from labelmill.pipeline.generator.training.start import find_start, spec_of
from labelmill.pipeline.generator.training.train import train_generator
from labelmill.pipeline.generator.training.trainer import GeneratorTrainer
from labelmill.pipeline.training.randomness import seed_of
from labelmill.pipeline.training.state import (
    TrainingStateError,
    latest_state,
    locked,
    read_progress,
    read_tensors,
    write_state,
)
from labelmill.schemas.errors import LockedError
from labelmill.schemas.training import TrainGeneratorConfig


def pixel_distance(images_NHWC: NDArray[np.uint8], generator: Generator) -> float:
    """Frechet distance between Gaussians fitted to 4x4 thumbnails of data and of generated images."""
    z = torch.randn(512, generator.spec.z_dim, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        fake = generator.synthesize(generator.map(z)).images_BCHW
    real = torch.from_numpy(np.ascontiguousarray(images_NHWC)).permute(0, 3, 1, 2).float() / 127.5 - 1
    moments = []
    for images in (real, fake):
        features = torch.nn.functional.avg_pool2d(images, RESOLUTION // 4).flatten(1).double()
        moments.append((features.mean(dim=0), torch.cov(features.T)))
    (mean_a, cov_a), (mean_b, cov_b) = moments
    # trace of (A B)^(1/2) from the eigenvalues of the product, which are real and not negative.
    cross = torch.linalg.eigvals(cov_a @ cov_b).real.clamp(min=0).sqrt().sum()
    return float((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross)


def test_training_brings_the_generator_closer_to_the_data(folder: Path, tmp_path: Path) -> None:
    config = make_config(folder, tmp_path / "run", total_images=8 * 300)
    before = pixel_distance(discs(256), Generator(spec_of(config.network)))
    train_generator(config)
    after = pixel_distance(discs(256), open_checkpoint(str(config.output / "generator.safetensors")).generator)
    assert after < 0.5 * before, (before, after)
    assert (config.output / "samples" / "latest.png").is_file()
    assert losses(config.output)[-1]["images"] == 8 * 300


def test_a_resumed_training_takes_the_same_steps(folder: Path, tmp_path: Path) -> None:
    """Stopped at 13 of 24 steps, between two log lines and two regularisation steps."""
    whole = make_config(folder, tmp_path / "whole")
    train_generator(whole)
    train_generator(make_config(folder, tmp_path / "parts", total_images=8 * 13))
    train_generator(make_config(folder, tmp_path / "parts"))
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    states = [latest_state(tmp_path / name / "state") for name in ("whole", "parts")]
    assert states[0] is not None and states[1] is not None
    for name in ("generator", "average", "discriminator", "generator_moments", "discriminator_moments"):
        first, second = (read_tensors(state, name) for state in states if state is not None)
        assert all(torch.equal(first[key], second[key]) for key in first), name


def test_kills_at_random_moments_lose_little_and_break_nothing(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "killed"
    config = make_config(folder, output, total_images=8 * 100_000, checkpoint_interval_seconds=0.01)
    command = _command(config, tmp_path)
    random = np.random.RandomState(0)
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        earlier = latest_state(output / "state")
        _wait_for(partial(_newer_state, output, earlier), process)
        time.sleep(float(random.rand()) * 0.5)
        process.kill()
        process.wait()
        state = latest_state(output / "state")
        assert state is not None
        trainer = open_trainer(config)
        assert trainer.num_steps == int(state.name)
        open_checkpoint(str(output / "generator.safetensors"))
        steps = [line["step"] for line in losses(output)]
        assert steps == sorted(set(steps))


def _newer_state(output: Path, earlier: Path | None) -> bool:
    """And the generator, which the first save writes after its state."""
    return latest_state(output / "state") not in (None, earlier) and (output / "generator.safetensors").exists()


def test_sigterm_saves_and_ends_resumable(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "terminated"
    config = make_config(folder, output, total_images=8 * 100_000)
    process = subprocess.Popen(_command(config, tmp_path), stdout=subprocess.DEVNULL)
    _wait_for(lambda: (output / "log.jsonl").exists() and len(losses(output)) > 0, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 75
    state = latest_state(output / "state")
    assert state is not None
    assert read_progress(state)["num_steps"] == int(state.name) > 0


def _command(config: TrainGeneratorConfig, folder: Path) -> list[str]:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return [sys.executable, "-m", "labelmill.pipeline.cli", "train-generator", str(path)]


def _wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the training ended by itself"
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_max_seconds_stops_resumably(folder: Path, tmp_path: Path) -> None:
    config = make_config(folder, tmp_path / "run", total_images=8 * 100_000, max_seconds=0.5)
    train_generator(config)
    state = latest_state(config.output / "state")
    assert state is not None and int(state.name) > 0


def test_changed_settings_are_refused_by_name(folder: Path, tmp_path: Path) -> None:
    train_generator(make_config(folder, tmp_path / "run", total_images=8))
    changed = make_config(folder, tmp_path / "run", optimisation={"generator_learning_rate": 0.01}, seed=5)
    with pytest.raises(TrainingStateError) as caught:
        train_generator(changed)
    assert "optimisation.generator_learning_rate was 0.002, now 0.01" in str(caught.value)
    assert "seed was 0, now 5" in str(caught.value)


def test_a_state_of_another_version_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    train_generator(make_config(folder, tmp_path / "run", total_images=8))
    (path,) = (tmp_path / "run" / "state").glob("*/average.safetensors")
    save_file({**load_file(path), "mapping.w_avg": torch.zeros(16)}, path)
    progress = json.loads((path.parent / "progress.json").read_text())
    progress["sha256"]["average"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (path.parent / "progress.json").write_text(json.dumps(progress))
    with pytest.raises(TrainingStateError, match=r"average\.safetensors: does not fit .* first is 'mapping\.w_avg'"):
        train_generator(make_config(folder, tmp_path / "run", total_images=16))


def test_a_state_that_does_not_say_what_it_learned_from_is_refused(folder: Path, tmp_path: Path) -> None:
    train_generator(make_config(folder, tmp_path / "run", total_images=8))
    (path,) = (tmp_path / "run" / "state").glob("*/progress.json")
    progress = json.loads(path.read_text())
    del progress["data_sha256"]
    path.write_text(json.dumps(progress))
    with pytest.raises(TrainingStateError, match="saved by another version of labelmill"):
        train_generator(make_config(folder, tmp_path / "run", total_images=16))


def test_a_missing_source_of_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrainingStateError, match="no complete training state"):
        train_generator(make_config(folder, tmp_path / "run", initialise_from=str(tmp_path / "empty")))


def test_the_head_start_leaves_the_generator_alone(folder: Path, tmp_path: Path) -> None:
    config = make_config(folder, tmp_path / "run", optimisation={"discriminator_head_start_images": 16})
    trainer = open_trainer(config)
    before = {name: tensor.clone() for name, tensor in trainer.generator.state_dict().items()}
    for expected in (True, True, False):
        trainer.step()
        after = trainer.generator.state_dict()
        assert all(torch.equal(after[name], before[name]) for name in before) == expected


def test_other_images_of_the_same_number_are_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_discs(tmp_path / "in", 8)
    train_generator(make_config(tmp_path / "in", tmp_path / "run", total_images=8))
    image = cv2.imread(str(tmp_path / "in/003.png"))
    assert image is not None
    cv2.imwrite(str(tmp_path / "in/003.png"), 255 - image)
    with pytest.raises(TrainingStateError, match="learned from other images than the current ones"):
        train_generator(make_config(tmp_path / "in", tmp_path / "run", total_images=16))


def test_a_training_that_diverges_keeps_its_last_good_state(folder: Path, tmp_path: Path) -> None:
    config = make_config(folder, tmp_path / "run", total_images=8 * 4)
    train_generator(make_config(folder, tmp_path / "run", total_images=8))
    trainer = open_trainer(config)
    with torch.no_grad():
        trainer.generator.get_parameter("synthesis.b16.torgb.bias")[0] = torch.nan
    trainer.step()
    with pytest.raises(TrainingFailedError, match=r"after 16 images .* is not finite: the training has diverged"):
        save(trainer)
    assert open_trainer(config).num_steps == 1
    open_checkpoint(str(config.output / "generator.safetensors"))


def test_an_output_among_the_images_is_refused(tmp_path: Path) -> None:
    write_discs(tmp_path, 8)
    with pytest.raises(TrainingStateError, match=r"output: .* lies inside data\.path"):
        train_generator(make_config(tmp_path, tmp_path / "run", total_images=8))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"device": "cuda:77"}, "device: cuda:77(, but PyTorch finds no GPU here| is not there)"),
        ({"device": "gpu"}, r"device.*\n.*auto\|cpu\|cuda"),
        ({"optimisation": {"precision": "float16"}}, "float16 needs a GPU"),
    ],
)
def test_devices_that_are_not_there_are_refused(
    change: dict[str, object], words: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        train_generator(make_config(folder, tmp_path / "run", **change))


class TestOptimiser:
    def test_it_is_adam_without_momentum(self) -> None:
        torch.manual_seed(0)
        ours, theirs = (torch.nn.Parameter(torch.ones(5)) for _ in range(2))
        optimiser = SecondMomentAdam({"p": ours}, rate=0.01, beta2=0.99)
        reference = torch.optim.Adam([theirs], lr=0.01, betas=(0.0, 0.99), eps=1e-8)
        for _ in range(5):
            gradient = torch.randn(5)
            ours.grad, theirs.grad = gradient.clone(), gradient.clone()
            optimiser.step()
            reference.step()
        assert torch.allclose(ours, theirs, atol=1e-6)

    def test_overflowing_gradients_are_bounded(self) -> None:
        parameter = torch.nn.Parameter(torch.zeros(2))
        optimiser = SecondMomentAdam({"p": parameter}, rate=0.01, beta2=0.99, may_overflow=True)
        parameter.grad = torch.tensor([float("nan"), float("inf")])
        optimiser.step()
        assert bool(torch.isfinite(parameter).all())


class TestState:
    @pytest.mark.parametrize("damage", ["cut", "flip", "progress", "gone"])
    def test_a_damaged_state_is_named(self, damage: str, folder: Path, tmp_path: Path) -> None:
        config = make_config(folder, tmp_path / "run", total_images=8)
        train_generator(config)
        state = latest_state(config.output / "state")
        assert state is not None
        path = state / ("progress.json" if damage == "progress" else "discriminator.safetensors")
        content = path.read_bytes()
        if damage == "gone":
            path.unlink()
        elif damage == "flip":  # one bit of a weight, which is a weight still
            path.write_bytes(content[:-100] + bytes([content[-100] ^ 1]) + content[-99:])
        else:
            path.write_bytes(content[: len(content) // 2])
        with pytest.raises(TrainingStateError, match=rf"{path}: damaged .* remove {state} .* initialise_from"):
            train_generator(make_config(folder, tmp_path / "run", total_images=16))

    def test_only_generators_are_told_of_initialise_from(self, tmp_path: Path) -> None:
        write_state(tmp_path / "state", 5, {"model": {"x": torch.ones(2)}}, {"num_steps": 5})
        state = tmp_path / "state" / "000000005"
        (state / "model.safetensors").write_bytes(b"")
        with pytest.raises(TrainingStateError, match=rf"Restore it, or remove {state} and start again$"):
            read_tensors(state, "model")

    def test_one_training_at_a_time(self, folder: Path, tmp_path: Path) -> None:
        config = make_config(folder, tmp_path / "run", total_images=8 * 100_000)
        process = subprocess.Popen(_command(config, tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _wait_for(lambda: (config.output / "log.jsonl").exists() and len(losses(config.output)) > 0, process)
        with pytest.raises(LockedError, match=rf"another training is running there \(process {process.pid}\)"):
            train_generator(config)
        process.kill()
        process.wait()
        with locked(config.output):  # the lock went with the process
            pass

    def test_only_complete_states_count(self, tmp_path: Path) -> None:
        write_state(tmp_path, 5, {"a": {"x": torch.ones(2)}}, {"num_steps": 5})
        (tmp_path / "000000009").mkdir()  # no progress file: a copy that was cut short
        (tmp_path / ".writing-1").mkdir()
        assert latest_state(tmp_path) == tmp_path / "000000005"
        write_state(tmp_path, 7, {"a": {"x": torch.zeros(2)}}, {"num_steps": 7})
        assert latest_state(tmp_path) == tmp_path / "000000007"
        assert not (tmp_path / "000000005").exists()
        assert not (tmp_path / ".writing-1").exists()

    def test_files_of_the_128_px_training_stay_small(self, tmp_path: Path) -> None:
        config = TrainGeneratorConfig.model_validate({"data": {"kind": "domain"}, "output": str(tmp_path / "run")})
        data = TrainingImages(np.zeros((1, 128, 128, 3), np.uint8), seed=0, horizontal_flip=False)
        save(GeneratorTrainer(config, find_start(config), data))
        state = latest_state(tmp_path / "run" / "state")
        assert state is not None
        sizes = [path.stat().st_size for path in state.iterdir()]
        assert max(sizes) < 16 * 2**20
        assert sum(sizes) < 34 * 2**20


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_noise_is_drawn_on_the_device_and_follows_from_its_place(device: str) -> None:
    spec = make_sampler(16).generator.spec

    def drawn(seed: int, step: int, purpose: str) -> list[Tensor]:
        return Draws(seed, step, torch.device(device)).noise(purpose, 2, spec)

    noise = drawn(1, 2, "generator")
    assert [tuple(part.shape) for part in noise] == [(2, 1, size, size) for size in (4, 8, 8, 16, 16)]
    assert {part.device.type for part in noise} == {device}
    for seed, step, purpose in ((1, 2, "generator"), (1, 3, "generator"), (2, 2, "generator"), (1, 2, "path_length")):
        is_same = (seed, step, purpose) == (1, 2, "generator")
        assert all(torch.equal(*pair) == is_same for pair in zip(noise, drawn(seed, step, purpose), strict=True))
    if device == "cpu":  # as ever, so that trainings resume
        random = torch.Generator().manual_seed(seed_of(1, 2, "generator/noise"))
        assert all(torch.equal(part, torch.randn(part.shape, generator=random)) for part in noise)
