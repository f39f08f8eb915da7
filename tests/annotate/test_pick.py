"""Which images are picked, and what `labelmill annotate pick` writes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.small_annotations import sampler_of, sha256_of
from typer.testing import CliRunner

from labelmill.pipeline.annotate import choose
from labelmill.pipeline.annotate.choose import choose_coverage, choose_uncertain, greedy_cover, shown_clusters
from labelmill.pipeline.annotations.read import read_description
from labelmill.pipeline.annotations.write import comfortable_scale
from labelmill.pipeline.cli import app
from labelmill.pipeline.labelers.methods import fit_to_bytes, open_fitted
from labelmill.schemas.errors import ConfigError, OutputError
from labelmill.schemas.labelers.style_mixing import StyleMixingConfig
from labelmill.schemas.sample import ImageShape

QUICK = StyleMixingConfig(variants=4, crossover=3, clusters=4, restarts=2, iterations=4, fit_samples=16)
POOL = range(50, 62)


def _run(*arguments: object) -> None:
    CliRunner().invoke(app, ["annotate", "pick", *map(str, arguments)], catch_exceptions=False)


def test_greedy_takes_what_is_new_and_then_what_is_rare() -> None:
    shown_NK = torch.tensor(
        [[1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 1, 0], [1, 0, 0, 1, 1], [0, 0, 0, 0, 1]], dtype=torch.float32
    )
    assert greedy_cover(shown_NK, 5) == [1, 3, 0, 2, 4]
    assert greedy_cover(shown_NK[:, :3], 2) == [1, 0]
    full_NK = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 1, 0], [0, 0, 0, 0, 1, 1]], dtype=torch.float32)
    assert greedy_cover(full_NK, 2) == [0, 2], "two new clusters count more than one beside three known ones"


def test_coverage_shows_more_clusters_than_the_first_images(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "CLUSTERS", 40)
    sampler = sampler_of(tiny_checkpoint)
    taken = choose_coverage(sampler, POOL, 3)
    shown_NK = shown_clusters(sampler, POOL)
    assert taken == sorted(set(taken)) and len(taken) == 3 and set(taken) <= set(POOL)
    assert choose_coverage(sampler, POOL, 3) == taken
    covered = shown_NK[[seed - 50 for seed in taken]].amax(dim=0).sum()
    assert covered > shown_NK[:3].amax(dim=0).sum()
    greedy_first = int(shown_NK.sum(dim=1).argmax())
    assert POOL[greedy_first] in taken


def test_uncertain_are_those_of_least_confidence(tiny_checkpoint: Path) -> None:
    sampler = sampler_of(tiny_checkpoint)
    labeler = open_fitted(QUICK, sampler, fit_to_bytes(QUICK, sampler)).labeler
    taken = choose_uncertain(sampler, labeler, POOL, 4)
    confidence = {seed: float(labeler.label(sampler.sample([seed], labeler.layers)).confidence_B) for seed in POOL}
    assert max(confidence[seed] for seed in taken) <= min(confidence[seed] for seed in set(POOL) - set(taken)) + 1e-6


@pytest.mark.parametrize("how", ["random", "coverage", "uncertain"])
def test_the_command_writes_a_set_once(
    write_run_file: Callable[..., Path], tiny_checkpoint: Path, tmp_path: Path, how: str
) -> None:
    run_file, folder = write_run_file(generator={"truncation_psi": 0.6}), tmp_path / "set"
    options = ("--count", 3, "--choose", how, "--pool", 6, "--first-seed", 50, "--classes", "background, hair")
    _run(run_file, "--out", folder, *options)
    about = read_description(folder)
    assert len(about.images) == 3 and about.classes == ("background", "hair") and about.draw.truncation_psi == 0.6
    assert about.picked is not None and about.picked.choose == how
    seeds = [image.seed for image in about.images]
    assert set(seeds) <= set(range(50, 56)) and (how != "random" or seeds == [50, 51, 52])
    assert about.checkpoint_sha256 == sha256_of(tiny_checkpoint) and about.images[0].scale == 16
    files = {file: file.read_bytes() for file in folder.rglob("*.*")}
    assert len(files) == 7
    _run(run_file, "--out", folder, *options)
    assert {file: file.read_bytes() for file in folder.rglob("*.*")} == files
    with pytest.raises(OutputError, match="holds another annotation set"):
        _run(run_file, "--out", folder, *options, "--set", "generator.truncation_psi=0.8")


def test_a_set_gets_its_classes_later_but_no_others(write_run_file: Callable[..., Path], tmp_path: Path) -> None:
    command = (write_run_file(), "--out", tmp_path / "set", "--choose", "random", "--count", 2, "--pool", 2)
    _run(*command)
    assert read_description(tmp_path / "set").classes == ()
    _run(*command, "--classes", "background,hair")
    _run(*command)
    assert read_description(tmp_path / "set").classes == ("background", "hair")
    with pytest.raises(ConfigError, match=r"--classes background,hat: .* has background, hair already"):
        _run(*command, "--classes", "background,hat")
    with pytest.raises(ConfigError, match=r"--scale 8: .* has its images enlarged by 16"):
        _run(*command, "--scale", 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--count", 20, "--pool", 10), r"count 20 is more than the pool of 10"),
        (("--first-seed", 2**32 - 10), r"first_seed 4294967286 plus 300 seeds passes 2\^32"),
        (("--out", "s3://bucket/set"), "s3://bucket/set: a set is annotated in a local folder"),
        (("--classes", "background"), "--classes background: at least two classes"),
        (("--classes", "background,1st"), r"--classes background,1st: \['1st'\]: a name is a letter, then"),
        (("--classes", "background,ignore"), "'ignore' cannot name a class"),
    ],
)
def test_what_cannot_be_is_refused_before_work(
    write_run_file: Callable[..., Path], tmp_path: Path, options: tuple[object, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        _run(write_run_file(), "--out", tmp_path / "set", *options)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(("side", "scale"), [(32, 16), (64, 8), (48, 16), (512, 1), (1024, 1), (500, 2)])
def test_people_see_images_of_512_pixels_or_more(side: int, scale: int) -> None:
    assert comfortable_scale(ImageShape(height=side, width=2 * side, channels=3)) == scale
