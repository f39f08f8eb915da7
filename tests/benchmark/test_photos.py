"""The benchmark of photos, with an inversion of a few steps and no encoder."""

from pathlib import Path

import pytest
import torch

from labelmill.pipeline.benchmark.photos.run import PhotosExtent, benchmark_photos
from labelmill.pipeline.benchmark.photos.tables import markdown
from labelmill.schemas.inversion import InversionSettings, StepsConfig


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_drawings_go_through_files_and_latents(tmp_path: Path) -> None:
    inversion = InversionSettings(encoder=None, steps=StepsConfig(w=8, w_plus=8), batch_size=4, threads=1)
    extent = PhotosExtent(num_dev=4, num_test=8, networks=False, inversion=inversion)
    cpu, told = torch.device("cpu"), list[str]()
    found = benchmark_photos(tmp_path, "bundled:avatars-32", cpu, extent, told.append)
    scores = {row.name: row.scores.miou or 0 for row in found.rows}
    assert list(scores) == ["w_plus_snapped", "w_plus", "w_snapped", "w", "encoder", "mean", "oracle"]
    # Without an encoder the guess is the average; a few steps beat it; an oracle knows most.
    assert scores["encoder"] == scores["mean"] < scores["w_plus"] < scores["oracle"]
    assert found.psnr_db["w_plus"] > 17 and found.costs.seconds_per_photo > 0
    assert len(list((tmp_path / "photos" / "latents" / "latents").glob("*.safetensors"))) == 12
    assert (tmp_path / "photos.md").read_text() == markdown(found)
    # From the latents that are there, the same.
    again = benchmark_photos(tmp_path, "bundled:avatars-32", cpu, extent, told.append)
    assert again == found
