"""Training a real network on a tiny dataset: it learns, resumes to the bit, ends when told, runs on ranks."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers.discs import alpha_of, disc, levels_of, write_discs, write_photos
from helpers.drivers import free_ports
from safetensors.torch import load_file

from labelmill.pipeline.pictures.photos import PhotoError
from labelmill.pipeline.segmentation.loss import segmentation_loss, shares_of_levels
from labelmill.pipeline.segmentation.ranks import Ranks
from labelmill.pipeline.segmentation.reading import open_split, read_samples, training_loader
from labelmill.pipeline.segmentation.train import SegmentationTrainer, train
from labelmill.pipeline.training.state import TrainingStateError
from labelmill.pipeline.training.stop import Stop
from labelmill.schemas.errors import ConfigError, OutputError, StalledError
from labelmill.schemas.segmentation import SegmentationTrainingConfig, TrainingMetrics
from labelmill.schemas.yaml_file import load_config, validate

ROOT = Path(__file__).resolve().parents[2]


AUTO_SHOT = yaml.safe_load((ROOT / "deploy" / "auto_shot.yaml").read_text())


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """With probabilities, which only trainings with soft targets read."""
    return write_discs(tmp_path_factory.mktemp("discs") / "out", optional_files=("probabilities.png",))


def _values(dataset: str, output: Path, steps: int = 6, **others: object) -> dict[str, object]:
    """A training of MobileNetV3 at 32 px. Its dropout and augmentation are on."""
    optimisation = {"batch_size": 4, "steps": steps, "learning_rate": 0.05}
    values: dict[str, object] = {
        "data": {"dataset": dataset, "split": "train"},
        "output": str(output),
        "model": {"architecture": "deeplabv3_mobilenet_v3_large", "upscale": 2},
        "targets": "mask",
        "workers": 0,
        "device": "cpu",
        "log_interval_steps": 1,
    }
    for key, value in others.items():
        values[key] = value
    values["optimisation"] = {**optimisation, **dict(values.get("optimisation", {}))}  # type: ignore[call-overload]
    return values


def _config(dataset: str, output: Path, **others: object) -> SegmentationTrainingConfig:
    return validate(_values(dataset, output, **others), "train.yaml", SegmentationTrainingConfig)  # type: ignore[arg-type]


def _losses(output: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (output / "log.jsonl").read_text().splitlines()]


class StopAfter(Stop):
    """Asks for a stop once a trainer has taken so many steps."""

    def __init__(self, trainer: SegmentationTrainer, steps: int) -> None:
        super().__init__(None)
        self._trainer, self._steps = trainer, steps

    @property
    def is_due(self) -> bool:
        return self._trainer.num_steps >= self._steps


def _train_until(config: SegmentationTrainingConfig, steps: int) -> None:
    trainer = SegmentationTrainer(
        config, open_split(config.data.dataset, config.data.split), Ranks(0, 1, torch.device("cpu"))
    )
    trainer.restore()
    trainer.run(StopAfter(trainer, steps))


def test_it_learns(dataset: str, tmp_path: Path) -> None:
    config = _config(
        dataset,
        tmp_path,
        model={"architecture": "resnet18_8s", "upscale": 2},
        optimisation={"steps": 45, "optimiser": "adam", "learning_rate": 0.002},
        held_out={"kind": "dataset", "dataset": dataset, "split": "val"},
        evaluation_interval_steps=15,
    )
    metrics = train(config)
    losses = _losses(tmp_path)
    assert len(losses) == 45
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    assert metrics == TrainingMetrics.model_validate_json((tmp_path / "metrics.json").read_text())
    assert [evaluation.step for evaluation in metrics.evaluations] == [15, 30, 45]
    assert metrics.final == metrics.evaluations[-1].scores
    assert metrics.final is not None and metrics.final.miou is not None and metrics.final.miou > 0.6
    assert metrics.final.num_images == open_split(dataset, "val").num_samples
    assert metrics.images == 45 * 4
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_rate_falls_by_the_polynomial(dataset: str, tmp_path: Path) -> None:
    train(_config(dataset, tmp_path, steps=4))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    rates = [line["learning_rate"] for line in lines]
    assert rates == pytest.approx([0.05 * (1 - step / 4) ** 0.9 for step in range(4)], abs=1e-6)


def test_a_gradient_limit_bounds_the_first_step(dataset: str, tmp_path: Path) -> None:
    """Of SGD, by the rate times the limit."""
    moved = []
    for name, limit in (("free", None), ("limited", 1e-4)):
        optimisation = {"learning_rate": 0.05, "gradient_limit": limit, "weight_decay": 0}
        config = _config(dataset, tmp_path / name, steps=1, optimisation=optimisation)
        split = open_split(dataset, "train")
        trainer = SegmentationTrainer(config, split, Ranks(0, 1, torch.device("cpu")))
        before = [weights.detach().clone() for weights in trainer.segmenter.parameters()]
        trainer.restore()
        trainer.run(StopAfter(trainer, 1))
        after = [weights.detach() for weights in trainer.segmenter.parameters()]
        moved.append(max(float((x - y).abs().max()) for x, y in zip(before, after, strict=True)))
    assert moved[1] == pytest.approx(0.05 * 1e-4, rel=0.01) and moved[0] > 100 * moved[1]


def test_the_auto_shot_file_is_valid_and_asks_for_soft_targets() -> None:
    config = load_config(ROOT / "deploy" / "auto_shot.yaml", SegmentationTrainingConfig)
    assert (config.targets, config.model.architecture) == ("soft", "unet")


@pytest.mark.parametrize(
    ("optimiser", "others"),
    [("sgd", {}), ("adam", {key: AUTO_SHOT[key] for key in ("targets", "augmentation")})],
    ids=["sgd", "adam"],
)
def test_a_resumed_training_is_the_same_to_the_bit(
    dataset: str, tmp_path: Path, optimiser: str, others: dict[str, object]
) -> None:
    optimisation = {"optimiser": optimiser, "learning_rate": 0.003}
    whole, resumed = (
        _config(dataset, tmp_path / name, steps=7, optimisation=optimisation, **others) for name in ("whole", "resumed")
    )
    train(whole)
    _train_until(resumed, 2)
    assert len(_losses(tmp_path / "resumed")) == 2
    _train_until(resumed, 5)
    train(resumed)
    assert _losses(tmp_path / "resumed") == _losses(tmp_path / "whole")
    assert len(set(_losses(tmp_path / "whole"))) == 7
    for name in ("model.safetensors", "state/000000007/optimiser.safetensors"):
        ours, theirs = (load_file(tmp_path / folder / name) for folder in ("resumed", "whole"))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert (tmp_path / "resumed" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()


def test_a_finished_training_is_left_as_it_is(dataset: str, tmp_path: Path) -> None:
    config = _config(dataset, tmp_path, steps=2)
    first = train(config)
    content = (tmp_path / "model.safetensors").read_bytes()
    assert train(config) == first
    assert (tmp_path / "model.safetensors").read_bytes() == content


def test_a_short_training_says_what_it_does_and_leaves_a_curve(
    dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With fewer steps than there are between lines of the log. That number may change when it is resumed."""
    monkeypatch.setattr("labelmill.pipeline.segmentation.progress._FIRST_LINE_SECONDS", 0)
    config = _config(dataset, tmp_path, steps=4, log_interval_steps=50, held_out=_held_out(dataset, "val"))
    _train_until(config, 2)
    capsys.readouterr()
    train(_config(dataset, tmp_path, steps=4, log_interval_steps=3, held_out=_held_out(dataset, "val")))
    assert len(_losses(tmp_path)) == 4
    told = capsys.readouterr().err
    num_train, num_val = (open_split(dataset, name).num_samples for name in ("train", "val"))
    assert f"data: {num_train} images of 16 x 16 pixels in " in told and "3 classes: background, skin, hair" in told
    assert f"held out: {num_val} images of {dataset}" in told
    assert re.search(
        r"network: deeplabv3_mobilenet_v3_large, \d+\.\d million weights, on cpu; 0 loader processes", told
    )
    assert "resuming after step 2 of 4" in told
    assert re.search(r"step 4 of 4: \d+\.\d images/s, about 0 s left", told)


def test_photos_that_were_left_out_are_told(dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = write_photos(tmp_path, {"a": (16, 16)})
    (photos / "b.heic").touch()
    held_out = {"kind": "photos", "photos": str(photos), "masks": str(tmp_path / "truth")}
    train(_config(dataset, tmp_path / "out", steps=1, held_out=held_out))
    told = capsys.readouterr().err
    assert f"held out: 1 photo of {photos}; skipped files that are not .jpg" in told and "1 .heic" in told


def _held_out(dataset: str, split: str | None) -> dict[str, object]:
    return {"kind": "dataset", "dataset": dataset, "split": split}


def test_scores_are_those_of_what_is_held_out_now(dataset: str, tmp_path: Path) -> None:
    """Finished, or on the way: scores on something else are left out, not passed off."""
    photos = {
        "kind": "photos",
        "photos": str(write_photos(tmp_path, {"a": (16, 16)})),
        "masks": str(tmp_path / "truth"),
    }
    config = _config(dataset, tmp_path / "out", steps=2, held_out=_held_out(dataset, "val"))
    on_val = train(config)
    assert on_val.final is not None and on_val.final.num_images == open_split(dataset, "val").num_samples > 1
    on_photos = train(_config(dataset, tmp_path / "out", steps=2, held_out=photos))
    assert on_photos.final is not None and on_photos.final.num_images == 1
    assert [evaluation.step for evaluation in on_photos.evaluations] == [2]
    assert on_photos == TrainingMetrics.model_validate_json((tmp_path / "out" / "metrics.json").read_text())
    assert train(_config(dataset, tmp_path / "out", steps=2)).final is None
    common = {"steps": 4, "evaluation_interval_steps": 1}
    _train_until(_config(dataset, tmp_path / "half", held_out=_held_out(dataset, "val"), **common), 2)
    resumed = train(_config(dataset, tmp_path / "half", held_out=photos, **common))
    assert [evaluation.step for evaluation in resumed.evaluations] == [3, 4]


def test_what_it_learns_from_is_not_held_out(dataset: str, tmp_path: Path) -> None:
    """Whatever the splits are called, and by whatever path the dataset goes."""
    (tmp_path / "link").symlink_to(dataset)
    shared = open_split(dataset, "train").num_samples
    for place in (dataset, f"{dataset}/", f"file://{dataset}", str(tmp_path / "link")):
        with pytest.raises(ConfigError, match=f"held_out: {shared} of its 39 samples are of the same checkpoint"):
            train(_config(dataset, tmp_path / "out", held_out=_held_out(place, None)))
    with pytest.raises(ConfigError, match=r"are of the same checkpoint and seeds"):
        data = {"dataset": dataset, "split": None}
        train(_config(dataset, tmp_path / "out", data=data, held_out=_held_out(dataset, "val")))


def test_another_training_in_the_output_is_refused(dataset: str, tmp_path: Path) -> None:
    train(_config(dataset, tmp_path, steps=1))
    with pytest.raises(
        TrainingStateError, match=r"settings: seed was 0, now 9\. Restore them, or choose another output"
    ):
        train(_config(dataset, tmp_path, steps=1, seed=9))


def test_time_that_is_up_ends_it_resumable(dataset: str, tmp_path: Path) -> None:
    metrics = train(_config(dataset, tmp_path, steps=1000, max_seconds=0.01))
    assert metrics.steps < 1000 and metrics.final is None
    assert (tmp_path / "state" / f"{metrics.steps:09d}" / "progress.json").exists()


def _start(
    config: Path, *, code: str | None = None, before: Sequence[str] = (), **environment: str
) -> subprocess.Popen[str]:
    """`labelmill train`, or other code with the file as its argument, run by another command if there is one."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    program = ["-m", "labelmill.pipeline.cli", "train"] if code is None else ["-c", code]
    command = [*before, sys.executable, *program, str(config)]
    return subprocess.Popen(
        command, cwd=ROOT, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def test_sigterm_ends_it_resumable(dataset: str, tmp_path: Path) -> None:
    path, output = tmp_path / "train.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(_values(dataset, output, steps=100_000, workers=1)))
    process = _start(path)
    deadline = time.monotonic() + 120
    while not ((output / "log.jsonl").exists() and _losses(output)) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    text = process.communicate(timeout=60)[0]
    assert process.returncode == 75, text
    assert "interrupted by SIGTERM; rerun the same command to resume" in text
    (state,) = (output / "state").iterdir()
    assert int(state.name) == len(_losses(output))
    _train_until(load_config(path, SegmentationTrainingConfig, ["workers=1"]), int(state.name) + 1)
    assert len(_losses(output)) == int(state.name) + 1


def test_it_needs_no_shared_memory(dataset: str, tmp_path: Path) -> None:
    """Containers keep /dev/shm at 64 MB: batches must not vanish there, nor a training end before its last step."""
    path, output = tmp_path / "train.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(_values(dataset, output, steps=5, workers=2)))
    mount = ["unshare", "--mount", "sh", "-c", "mount -t tmpfs -o size=4k labelmill /dev/shm"]
    if shutil.which("unshare") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may make /dev/shm small")
    process = _start(path, before=["unshare", "--mount", "sh", "-c", f'{mount[-1]} && exec "$@"', "sh"])
    text = process.communicate(timeout=120)[0]
    assert process.returncode == 0, text
    assert TrainingMetrics.model_validate_json((output / "metrics.json").read_text()).steps == len(_losses(output)) == 5


class KillLoadersAfter(StopAfter):
    """Kills the processes that read for a trainer instead."""

    @property
    def is_due(self) -> bool:
        if super().is_due:
            for loader in multiprocessing.active_children():
                loader.kill()
        return False


def test_a_lost_loader_ends_it_resumable(dataset: str, tmp_path: Path) -> None:
    """What was learned until then is saved; nothing that was not learned looks finished."""
    config = _config(dataset, tmp_path, steps=100_000, workers=1)
    trainer = SegmentationTrainer(config, open_split(dataset, "train"), Ranks(0, 1, torch.device("cpu")))
    trainer.restore()
    with pytest.raises(StalledError, match=r"was killed by SIGKILL\. If memory ran out, set fewer `workers`"):
        trainer.run(KillLoadersAfter(trainer, 2))
    (state,) = (tmp_path / "state").iterdir()
    assert int(state.name) == len(_losses(tmp_path)) == trainer.num_steps >= 2
    with pytest.raises(StalledError, match=r"nothing for 0\.001 s from loader process"):
        train(_config(dataset, tmp_path / "none", steps=9, workers=1, loader_timeout_seconds=0.001))
    assert not (tmp_path / "none" / "model.safetensors").exists()


def test_killed_at_any_moment_it_ends_with_the_same_bytes(dataset: str, tmp_path: Path) -> None:
    """States are saved all the time, so that kills fall between the files of one, too."""
    common = {"steps": 24, "threads": 1, "checkpoint_interval_seconds": 0.001}
    train(_config(dataset, tmp_path / "whole", **common))
    path, output = tmp_path / "train.yaml", tmp_path / "killed"
    path.write_text(yaml.safe_dump(_values(dataset, output, **common)))
    random, reached = np.random.default_rng(4), []
    for _ in range(2):
        process = _start(path)
        before = reached[-1] if reached else 0
        while not ((output / "log.jsonl").exists() and len(_whole_lines(output)) > before):
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.4))
        process.kill()
        process.communicate()
        reached.append(len(_whole_lines(output)))
    assert reached == sorted(set(reached)) and reached[-1] < 24
    train(_config(dataset, output, **common))
    assert _losses(output) == _losses(tmp_path / "whole")
    assert (output / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert [path.name for path in (output / "state").iterdir()] == ["000000024"]


def _whole_lines(output: Path) -> list[str]:
    """Of a log that may be written to just now."""
    return [line for line in (output / "log.jsonl").read_text().splitlines(keepends=True) if line.endswith("\n")]


def _run_two_ranks(config: Path, code: str | None = None) -> list[str]:
    """What each of them prints."""
    (port,) = free_ports(1)
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [_start(config, code=code, RANK=str(rank), LOCAL_RANK=str(rank), **shared) for rank in range(2)]
    texts = [rank.communicate(timeout=200)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(texts)
    return texts


def test_two_ranks_with_uneven_shards_finish(dataset: str, tmp_path: Path) -> None:
    """More than two epochs: ranks of unequal length would wait for each other for ever."""
    split = open_split(dataset, "train")
    steps = 2 * -(-split.num_samples // 8) + 1
    assert len({shard.nsamples for shard in split.shards}) > 1
    path, output = tmp_path / "train.yaml", tmp_path / "out"
    held_out = {"kind": "dataset", "dataset": dataset, "split": "val"}
    path.write_text(yaml.safe_dump(_values(dataset, output, steps=steps, held_out=held_out)))
    _run_two_ranks(path)
    metrics = TrainingMetrics.model_validate_json((output / "metrics.json").read_text())
    assert metrics.steps == steps and metrics.images == steps * 4 * 2
    assert metrics.final is not None
    assert len(_losses(output)) == steps


def test_no_thread_of_a_rank_outlives_its_training(dataset: str, tmp_path: Path) -> None:
    """One that lets go of a tensor while the interpreter ends aborts the process, after all its work is done."""
    code = """
import sys, time
from pathlib import Path
from labelmill.pipeline.segmentation.train import train
from labelmill.schemas.yaml_file import load_config
from labelmill.schemas.segmentation import SegmentationTrainingConfig
train(load_config(Path(sys.argv[1]), SegmentationTrainingConfig, ()))

def names():
    for task in Path("/proc/self/task").iterdir():
        try:
            yield (task / "comm").read_text().strip()
        except OSError:  # it has just ended
            pass

for _ in range(100):  # a thread that was joined is listed for a moment longer
    threads = sorted(names())
    if not any("gloo" in name or "store" in name for name in threads):
        break
    time.sleep(0.05)
print("threads:", *threads)
"""
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(_values(dataset, tmp_path / "out", steps=2)))
    for text in _run_two_ranks(path, code):
        threads = next(line for line in text.splitlines() if line.startswith("threads:"))
        assert not {name for name in threads.split() if "gloo" in name or "store" in name}, threads


def test_probabilities_go_through_loader_processes_and_bound_the_loss(dataset: str, tmp_path: Path) -> None:
    """A network that is sure of the right class everywhere is wrong about 20 of 255 levels; one that has learned the
    targets is not."""
    split = open_split(dataset, "train")
    (batch,) = training_loader(split, batch_size=8, seed=0, batches=range(1), shuffle_shards=2, workers=1)
    assert batch.probabilities_BKHW is not None
    levels_BKHW = np.stack([levels_of(mask_HW) for mask_HW in batch.masks_BHW.numpy()])
    assert np.array_equal(batch.probabilities_BKHW.numpy(), levels_BKHW)
    sure = torch.log(torch.tensor(levels_BKHW == 235).float() + 1e-9)
    losses = [
        segmentation_loss(logits, batch.masks_BHW.long(), shares_of_levels(batch.probabilities_BKHW)).item()
        for logits in (sure, torch.tensor(levels_BKHW).float().log())
    ]
    entropy = -(235 * np.log(235 / 255) + 20 * np.log(10 / 255)) / 255
    assert losses[1] == pytest.approx(entropy, rel=1e-5) and losses[0] > 4 * entropy


def test_soft_targets_that_are_not_there_are_refused(tmp_path: Path) -> None:
    hard = write_discs(tmp_path / "hard", samples=8)
    with pytest.raises(ConfigError, match=r"targets: soft needs samples with probabilities\.png, .* has neither"):
        train(_config(hard, tmp_path / "out", data={"dataset": hard, "split": None}, targets="soft"))
    assert not (tmp_path / "out").exists()


def test_alpha_is_read_as_stored(tmp_path: Path) -> None:
    dataset = write_discs(tmp_path / "out", samples=8, optional_files=("alpha.png",))
    split = open_split(dataset, None)
    for sample in read_samples(split):
        assert sample.alpha_HW is not None
        assert np.array_equal(sample.alpha_HW, alpha_of(disc(int(sample.key))[1]))
    (batch,) = training_loader(split, batch_size=8, seed=0, batches=range(1), shuffle_shards=2)
    assert batch.alphas_BHW is not None and batch.alphas_BHW.dtype == torch.uint8
    assert torch.equal(batch.alphas_BHW, batch.masks_BHW * 100)
    with pytest.raises(
        ConfigError, match=r"targets: soft .* has only alpha\.png, which is of two classes, and 3 classes"
    ):
        train(_config(dataset, tmp_path / "soft", steps=1, data={"dataset": dataset, "split": None}, targets="soft"))
    assert not (tmp_path / "soft").exists()


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"optimisation": {"precision": "bfloat16"}}, "bfloat16 needs a GPU"),
        ({"held_out": "train"}, "are of the same checkpoint and seeds"),
        ({"held_out": "nowhere"}, "split 'nowhere' holds no sample"),
        ({"held_out": {"kind": "photos", "photos": "typo", "masks": "typo"}}, "typo: cannot be read: No such file"),
        ({"device": "cuda:7"}, "device: cuda:7(, but PyTorch finds no GPU here| is not there)"),
        ({"augmentation": {"scale": [2, 1]}}, "the smaller one first"),
        ({"model": {"architecture": "vgg"}}, "model.architecture"),
        ({"optimisation": {"optimizer": "sgd"}}, "did you mean optimiser"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(
    dataset: str, tmp_path: Path, others: dict[str, object], message: str
) -> None:
    if isinstance(others.get("held_out"), str):
        others = {"held_out": _held_out(dataset, str(others["held_out"]))}
    with pytest.raises((ConfigError, OutputError, PhotoError), match=message):
        train(_config(dataset, tmp_path / "out", **others))
    assert not (tmp_path / "out").exists()
