"""The benchmark of the alpha network, with fits that are far too short."""

from pathlib import Path

import torch

from labelmill.pipeline.benchmark.alpha.run import AlphaExtent, benchmark_alpha
from labelmill.pipeline.store.store import Store

_SHORT = {
    "steps": 10, "watch_interval": 5, "batch_size": 2, "width": 4, "discriminator_width": 4, "watch_samples": 8,
    "background": "zero", "background_layer": "b4.conv1", "layers": ["b16.conv1"], "restarts": 0,
}  # fmt: skip


def test_fits_are_measured_once_and_tabled_even_where_they_collapse(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    extent = AlphaExtent(seeds=(0,), num_test=16, num_dev=16, settings=_SHORT, spoilt=False)
    store, told = Store.open(str(tmp_path)), list[str]()
    benchmark = benchmark_alpha(store, "bundled:avatars-32", torch.device("cpu"), extent, told.append)
    (result,) = benchmark.results
    assert [point.step for point in result.curve] == [look.step for look in result.attempts[-1].looks]
    assert bool(result.scores) == (result.step is not None)
    page = (tmp_path / "alpha.md").read_text()
    assert "16 test images of `bundled:avatars-32`" in page
    again = benchmark_alpha(store, "bundled:avatars-32", torch.device("cpu"), extent, told.append)
    assert again == benchmark and len(told) == 1
