"""Arrays of .npz files, and what may pass for some."""

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from generator.checkpoints.checkpoint_files import images, random_generator, relative_difference

from labelmill.pipeline.generator.checkpoints import CheckpointError, parse_checkpoint
from labelmill.pipeline.generator.checkpoints.numpy_archive import read_numpy_archive
from labelmill.pipeline.generator.checkpoints.tensors import StoredTensor


def archive(compressed: bool = False, **arrays: object) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def generator_arrays() -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in random_generator().state_dict().items()}


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4", "i4", "u1", "?"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_numbers_of_any_kind_and_order(dtype: str, order: str) -> None:
    array = np.asarray(np.arange(24).reshape(2, 3, 4) % 2, dtype=dtype, order=order)
    found = read_numpy_archive(memoryview(archive(compressed=order == "F", x=array, y=array[0, 0, 0])))
    assert list(found) == ["x", "y"]
    for name, expected in (("x", array), ("y", array[0, 0, 0])):
        tensor = found[name]
        assert isinstance(tensor, StoredTensor)
        assert torch.equal(tensor.to_float32(), torch.from_numpy(np.asarray(expected, dtype=np.float32)))


def test_half_precision_arrays() -> None:
    arrays = {name: array.astype(np.float16) for name, array in generator_arrays().items()}
    found = parse_checkpoint("file.npz", archive(**arrays)).generator
    assert relative_difference(images(found), images(random_generator())) < 2e-2


def test_objects_are_refused_and_not_executed(tmp_path: Path) -> None:
    class Exploit:
        def __reduce__(self) -> tuple[object, ...]:
            return (tmp_path / "executed").touch, ()

    for content, sentence in (
        (archive(state=np.array(Exploit())), "holds no StyleGAN2 generator; its entries are 'state'"),
        (archive(**{**generator_arrays(), "mapping.w_avg": Exploit()}), r"mapping\.w_avg cannot be read .* type 'O'"),
    ):
        with pytest.raises(CheckpointError, match=sentence):
            parse_checkpoint("file.npz", content)
    assert not (tmp_path / "executed").exists()


def test_archives_that_would_unpack_to_far_more_are_refused() -> None:
    zeros = archive(compressed=True, x=np.zeros(2**25, dtype=np.float32))
    assert len(zeros) < 2**18
    with pytest.raises(CheckpointError, match=r"its member 'x\.npy' would unpack to .* out of proportion to the file"):
        parse_checkpoint("file.npz", zeros)
    lying = bytearray(zeros)
    struct.pack_into("<L", lying, lying.rindex(b"PK\x01\x02") + 24, 1000)
    with pytest.raises(CheckpointError, match="is not as long as announced"):
        parse_checkpoint("file.npz", bytes(lying))


@pytest.mark.parametrize("share", [0.3, 0.999])
@pytest.mark.parametrize("compressed", [False, True])
def test_truncated_archives_are_named(share: float, compressed: bool) -> None:
    content = archive(compressed, **generator_arrays())
    with pytest.raises(CheckpointError, match=r"file\.npz: truncated.*Fetch it again"):
        parse_checkpoint("file.npz", content[: int(len(content) * share)])


def test_members_that_are_no_arrays_only_matter_where_they_are_needed() -> None:
    headers = (b"", b"\x93NUMPY\x01\x00\xff\xff", b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + bytes(10), b"text" * 10)
    for member in headers:
        buffer = io.BytesIO(archive(**generator_arrays()))
        with zipfile.ZipFile(buffer, "a") as opened:
            opened.writestr("other/thing.npy", member)
            opened.writestr("README", b"text")
        with pytest.raises(CheckpointError, match="has 'other/thing', unknown to StyleGAN2"):
            parse_checkpoint("file.npz", buffer.getvalue())
