"""The main job through the command line: generate, verify, report, and everything that can be asked on the way."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from labelmill.pipeline.cli import app, run_command
from labelmill.schemas.errors import ConfigError, LabelmillError, OutputError, ShardError
from labelmill.schemas.section import SEED_LIMIT

RunFileWriter = Callable[..., Path]


def labelmill(*arguments: object) -> Result:
    """Run a command in this process; errors that a person would read are raised."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def _rows(output: Path) -> list[dict[str, object]]:
    return [row for path in sorted(output.glob("shards/*.parquet")) for row in pq.read_table(path).to_pylist()]


def _keys(tar: Path) -> list[int]:
    with tarfile.open(tar) as archive:
        return [int(name.split(".")[0]) for name in archive.getnames() if name.endswith(".mask.png")]


def test_generate_verify_report(write_run_file: RunFileWriter, tmp_path: Path) -> None:
    run_file = write_run_file()
    result = labelmill("generate", run_file)
    assert result.exit_code == 0
    assert "24 samples of 24 candidates in 4 shards" in result.stdout
    output = tmp_path / "out"
    assert [path.name for path in sorted(output.glob("shards/*.tar"))] == [f"tiny-{i:06d}.tar" for i in range(4)]
    assert "24 samples in 4 shards, all verified" in labelmill("verify", output).stdout
    assert labelmill("report", output).exit_code == 0
    assert (output / "report" / "index.html").stat().st_size > 10_000
    progress = json.loads((output / "progress.json").read_text())
    assert (progress["done"], progress["total"], progress["state"]) == (24, 24, "finished")


def test_exact_delivery_when_rules_drop_a_third(write_run_file: RunFileWriter, tmp_path: Path) -> None:
    probe = write_run_file(output=str(tmp_path / "probe"), dataset={"samples": 60, "samples_per_shard": 60})
    labelmill("generate", probe)
    shares = sorted(float(row["fraction_background"]) for row in _rows(tmp_path / "probe"))  # type: ignore[arg-type]
    # Foreground thresholds between observed shares, so that three of ten candidates are dropped.
    smallest, largest = 1 - shares[-10], 1 - shares[8]
    quality = {
        "enabled": True,
        "foreground_min": smallest,
        "foreground_max": largest,
        "confidence_min": 0,
        "largest_component_min": 0,
    }
    run_file = write_run_file(quality=quality, dataset={"samples": 50, "samples_per_shard": 15})
    result = labelmill("generate", run_file, "--keep-rejects")
    output = tmp_path / "out"
    assert result.exit_code == 0
    delivered = [key for tar in sorted(output.glob("shards/*.tar")) for key in _keys(tar)]
    assert len(delivered) == len(set(delivered)) == 50
    rows = _rows(output)
    dropped = [row for row in rows if not row["kept"]]
    assert 0.15 < len(dropped) / len(rows) < 0.5
    assert {row["drop_reason"] for row in dropped} <= {"foreground_too_small", "foreground_too_large"}
    assert [row["seed"] for row in rows if row["kept"]] == delivered
    rejected = [key for tar in sorted(output.glob("rejects/*.tar")) for key in _keys(tar)]
    assert rejected == [row["seed"] for row in dropped]
    for shard in range(4):  # within a shard no candidate is skipped
        seeds = [int(row["seed"]) for row in rows if int(row["seed"]) // 60 == shard]  # type: ignore[call-overload]
        assert seeds == list(range(60 * shard, 60 * shard + len(seeds)))

    labelmill("report", output)
    page = (output / "report" / "index.html").read_text()
    assert all(f"seed {row['seed']}" in page for row in dropped[:3])  # drawn again from their seeds

    before = {path: path.read_bytes() for path in output.glob("shards/*.parquet")}
    for path in [*output.glob("shards/*.parquet"), *output.glob("records/*.json")]:
        path.unlink()
    assert "repaired" in labelmill("verify", output, "--repair").stdout
    assert {path: path.read_bytes() for path in output.glob("shards/*.parquet")} == before


def test_more_samples_only_add_shards(write_run_file: RunFileWriter, tmp_path: Path) -> None:
    run_file = write_run_file()
    labelmill("generate", run_file)
    shards = tmp_path / "out" / "shards"
    before = {path.name: path.read_bytes() for path in shards.iterdir()}
    labelmill("generate", run_file, "--set", "dataset.samples=36")
    after = {path.name: path.read_bytes() for path in shards.iterdir()}
    assert after.items() > before.items()
    assert len(after) == 12
    assert "36 samples in 6 shards" in labelmill("verify", tmp_path / "out").stdout
    with pytest.raises(OutputError, match=r"36 or more works"):
        labelmill("generate", run_file)


def test_a_changed_configuration_is_refused(write_run_file: RunFileWriter, tmp_path: Path) -> None:
    run_file = write_run_file()
    labelmill("generate", run_file)
    before = sorted(path for path in (tmp_path / "out").rglob("*"))
    with pytest.raises(OutputError, match=r"generator\.truncation_psi: 0\.5 in the run file, 0\.7 in the output"):
        labelmill("generate", run_file, "--set", "generator.truncation_psi=0.5")
    assert sorted(path for path in (tmp_path / "out").rglob("*")) == before


def test_a_tar_that_was_deleted_is_made_again(write_run_file: RunFileWriter, tmp_path: Path) -> None:
    run_file = write_run_file()
    labelmill("generate", run_file)
    tar = tmp_path / "out" / "shards" / "tiny-000001.tar"
    before = tar.read_bytes()
    tar.unlink()  # as the message on a damaged one says
    labelmill("generate", run_file)
    assert tar.read_bytes() == before
    assert "24 samples in 4 shards, all verified" in labelmill("verify", tmp_path / "out").stdout


def test_plan_refuses_what_generate_refuses(write_run_file: RunFileWriter, tmp_path: Path) -> None:
    run_file = write_run_file()
    labelmill("generate", run_file)
    with pytest.raises(OutputError, match=r"generator\.truncation_psi"):
        labelmill("plan", run_file, "--set", "generator.truncation_psi=0.5")
    (tmp_path / "out" / "shards" / "tiny-000001.tar").unlink()
    assert "existing: 3 shards; to make: 1 shards, 6 samples" in labelmill("plan", run_file).stdout


def test_seeds_at_the_limit(write_run_file: RunFileWriter, tmp_path: Path) -> None:
    dataset = {"samples": 4, "samples_per_shard": 4, "first_seed": SEED_LIMIT - 16}
    run_file = write_run_file(dataset=dataset)
    labelmill("plan", run_file)
    labelmill("preview", run_file, "--out", tmp_path / "new" / "sheet.png")
    labelmill("generate", run_file)
    assert _keys(tmp_path / "out" / "shards" / "tiny-000000.tar") == list(range(SEED_LIMIT - 16, SEED_LIMIT - 12))


def test_a_foreign_folder_is_refused(write_run_file: RunFileWriter, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"thesis\.txt"):
        labelmill("generate", write_run_file())
    assert [path.name for path in output.iterdir()] == ["thesis.txt"]


def test_seeds_that_run_out_fail_at_once_and_say_why(write_run_file: RunFileWriter, tmp_path: Path) -> None:
    quality = {"enabled": True, "foreground_max": 0.0, "foreground_min": 0.0}
    with pytest.raises(ShardError, match=r"24 seeds gave 0 samples of the 6 wanted; dropped: \w+ \d+") as error:
        labelmill("generate", write_run_file(quality=quality))
    assert error.value.exit_code == 3
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert not list((tmp_path / "out").glob("shards/*"))


@pytest.mark.parametrize("crossover", [0, 8, 99])
def test_a_crossover_beyond_the_rows_is_refused_before_work(
    write_run_file: RunFileWriter, tmp_path: Path, crossover: int
) -> None:
    with pytest.raises(ConfigError, match=rf"labeler\.crossover.*{crossover}.*1.*7"):
        labelmill("generate", write_run_file(labeler={"crossover": crossover}))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"\x80\x02}q\x00.", b"<!DOCTYPE html>", b"\0" * 4096])
def test_what_is_no_checkpoint_is_refused_before_work(
    write_run_file: RunFileWriter, tmp_path: Path, content: bytes
) -> None:
    for name in ("network.safetensors", "network.pkl"):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(LabelmillError, match=name.replace(".", r"\.")):
            labelmill("generate", write_run_file(generator={"checkpoint": str(path)}))
    assert not (tmp_path / "out").exists()


def test_validate_plan_preview_and_fit(write_run_file: RunFileWriter, tmp_path: Path) -> None:
    run_file = write_run_file()
    assert "fine. 32 px, 8 rows of w" in labelmill("validate", run_file).stdout
    planned = labelmill("plan", run_file).stdout
    assert "24 samples in 4 shards" in planned
    assert "seeds 0 to 95, 24 per shard" in planned
    assert not (tmp_path / "out").exists()
    sheet = tmp_path / "sheet.png"
    labelmill("preview", run_file, "--samples", 6, "--out", sheet)
    image = cv2.imdecode(np.frombuffer(sheet.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    assert image.shape[0] > 32 and image.std() > 5
    assert not (tmp_path / "out").exists()
    fitted = labelmill("fit", run_file).stdout
    labelmill("generate", run_file)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["labeler_sha256"] in fitted
    assert manifest["fingerprint"] in fitted
    schema = json.loads(labelmill("validate", "--schema").stdout)
    assert "generator" in schema["required"]


def test_images_are_those_of_their_seeds(write_run_file: RunFileWriter, tmp_path: Path) -> None:
    """A delivered PNG equals an independent synthesis of its seed alone, but for rounding."""
    import torch

    from labelmill.pipeline.generator.checkpoints import open_checkpoint

    run_file = write_run_file(dataset={"image_format": "png"})
    labelmill("generate", run_file)
    checkpoint = json.loads((tmp_path / "out" / "manifest.json").read_text())["config"]["generator"]["checkpoint"]
    generator = open_checkpoint(checkpoint).generator
    with tarfile.open(tmp_path / "out" / "shards" / "tiny-000001.tar") as archive:
        member = archive.extractfile("0000000026.png")
        assert member is not None
        delivered_HWC = cv2.cvtColor(
            cv2.imdecode(np.frombuffer(member.read(), np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB
        )
    z = torch.from_numpy(np.random.RandomState(26).randn(1, 32)).float()
    with torch.inference_mode():
        ws = generator.truncate(generator.map(z), 0.7)
        image_CHW = generator.synthesize(ws).images_BCHW[0]
    expected_HWC = (image_CHW * 127.5 + 128).clamp(0, 255).permute(1, 2, 0).numpy()
    assert np.abs(delivered_HWC - expected_HWC).max() <= 1.01


def test_main_ends_with_the_documented_status(
    write_run_file: RunFileWriter, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["labelmill", "validate", str(write_run_file(dataset={"samples": 0}))])
    with pytest.raises(SystemExit) as ended:
        run_command()
    assert ended.value.code == 2
    assert "dataset.samples: input should be greater than or equal to 1, found 0" in capsys.readouterr().err


def test_masks_are_gray_png_of_class_ids(write_run_file: RunFileWriter, tmp_path: Path) -> None:
    labelmill("generate", write_run_file())
    with tarfile.open(tmp_path / "out" / "shards" / "tiny-000000.tar") as archive:
        names = [name for name in archive.getnames() if name.endswith(".mask.png")]
        masks = [cv2.imdecode(np.frombuffer(archive.extractfile(n).read(), np.uint8), -1) for n in names]  # type: ignore[union-attr]
        assert isinstance(archive.fileobj, io.BufferedReader)
    assert all(mask.shape == (32, 32) and mask.dtype == np.uint8 and set(np.unique(mask)) <= {0, 1} for mask in masks)
