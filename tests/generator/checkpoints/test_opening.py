"""Where checkpoints come from, and a clear sentence for everything that is none."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from generator.checkpoints.checkpoint_files import DATA, images, random_generator, relative_difference

from labelmill.pipeline.generator.checkpoints import CheckpointError, open_checkpoint, parse_checkpoint
from labelmill.pipeline.generator.checkpoints.native import save_generator

FILE = DATA / "rosinality-64.pt"

LFS_POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 381673535\n"
)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", r"an empty file\. Fetch it again"),
        (LFS_POINTER, "a Git LFS pointer, not the file itself; run `git lfs pull`"),
        (b"\n <!DOCTYPE html>\n<html><body>Quota exceeded</body>", "an HTML page saved under a checkpoint's name"),
        (b"<html lang='en'><head><title>Sign in</title>", "an HTML page saved under a checkpoint's name"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "an XML document"),
        (b"\x1f\x8b\x08\x00" + bytes(100), "compressed with gzip; unpack it first"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "not a checkpoint: it is neither a pickle"),
        (b"\x80\x04N.", "holds a NoneType, not a checkpoint"),
        (b"\x80", "truncated"),
        (b"PK\x03\x04", "truncated: a zip archive whose end is missing"),
    ],
)
def test_what_is_no_checkpoint_is_named(content: bytes, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "network.pkl"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{path}: {sentence}") as raised:
        open_checkpoint(str(path))
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("file", ["ada-64-uncond.pkl", "tf-legacy-32.pkl", "rosinality-64.pt"])
@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.9999])
def test_truncated_files_are_named(file: str, share: float) -> None:
    content = (DATA / file).read_bytes()
    with pytest.raises(CheckpointError, match=f"{file}: truncated.* Fetch it again"):
        parse_checkpoint(file, content[: int(len(content) * share)])


def test_truncated_native_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    save_generator(path, random_generator(), {})
    for share in (0.05, 0.5, 0.999):
        with pytest.raises(CheckpointError, match=r"own\.safetensors: (truncated|damaged safetensors file)"):
            content = path.read_bytes()
            parse_checkpoint(str(path), content[: int(len(content) * share)])


def test_paths_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot read the checkpoint: No such file"):
        open_checkpoint(str(tmp_path / "missing.pkl"))
    with pytest.raises(CheckpointError, match="cannot read the checkpoint: Is a directory"):
        open_checkpoint(str(tmp_path))
    with pytest.raises(CheckpointError, match="no bundled generator 'nothing'; there are: bundled:"):
        open_checkpoint("bundled:nothing")
    with pytest.raises(CheckpointError, match=r"cannot read ftp://; a path or https, http, s3"):
        open_checkpoint("ftp://host/file.pkl")
    with pytest.raises(CheckpointError, match="names a folder"):
        open_checkpoint("https://host/folder/")


def test_hash_is_of_the_bytes_and_path_is_kept() -> None:
    loaded = open_checkpoint(str(FILE))
    assert loaded.sha256 == hashlib.sha256(FILE.read_bytes()).hexdigest()
    assert loaded.info.name == str(FILE)
    assert not loaded.generator.training
    assert not any(parameter.requires_grad for parameter in loaded.generator.parameters())
    assert torch.equal(images(open_checkpoint(FILE.as_uri()).generator), images(loaded.generator))


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """A web server for a folder, on loopback."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


@pytest.fixture
def server() -> Iterator[str]:
    with serving(DATA) as url:
        yield url


def test_urls(server: str) -> None:
    loaded = open_checkpoint(f"{server}/{FILE.name}")
    assert loaded.sha256 == hashlib.sha256(FILE.read_bytes()).hexdigest()
    with pytest.raises(CheckpointError, match=f"{server}/missing.pkl: no such file; check the URL"):
        open_checkpoint(f"{server}/missing.pkl")


@pytest.mark.parametrize(
    ("user", "query", "kind"),
    [
        ("user:hunter2@", "", "a user or a password"),
        ("hunter2@", "?token=hunter2", "a user or a password"),
        ("user:hun/ter2@", "", "a user or a password"),
        ("", "?token=hunter2", r"a query \(\?\.\.\.\)"),
        ("", "#hunter2", "a query"),
    ],
)
def test_secrets_in_urls_are_refused_and_do_not_show(user: str, query: str, kind: str, server: str) -> None:
    url = f"http://{user}{server.removeprefix('http://')}/{FILE.name}{query}"
    with pytest.raises(
        CheckpointError, match=rf"{server}/{FILE.name}\S*: {kind}.* in a URL is not supported"
    ) as raised:
        open_checkpoint(url)
    assert "hun" not in str(raised.value)


def test_unreachable_servers_are_named() -> None:
    with pytest.raises(CheckpointError, match=r"http://127\.0\.0\.1:9/file\.pkl: cannot fetch the checkpoint"):
        open_checkpoint("http://127.0.0.1:9/file.pkl")


def test_buckets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading from S3 is a signed GET of /bucket/key: credentials and endpoint come from the usual environment."""
    (tmp_path / "models" / "deep").mkdir(parents=True)
    (tmp_path / "models" / "deep" / "file.pt").write_bytes(FILE.read_bytes())
    with serving(tmp_path) as endpoint:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ALLOW_HTTP": "true",
        }.items():
            monkeypatch.setenv(name, value)
        loaded = open_checkpoint("s3://models/deep/file.pt")
        assert loaded.sha256 == hashlib.sha256(FILE.read_bytes()).hexdigest()
        with pytest.raises(CheckpointError, match=r"s3://models/deep/missing\.pt: no such file"):
            open_checkpoint("s3://models/deep/missing.pt")


def test_native_files_survive(tmp_path: Path) -> None:
    generator = random_generator(architecture="resnet", c_dim=3, conv_clamp=0.5)
    path = tmp_path / "own.safetensors"
    save_generator(path, generator, {"licence": "Apache-2.0"})
    loaded = open_checkpoint(str(path))
    assert loaded.generator.spec == generator.spec
    assert loaded.info.provenance == {"licence": "Apache-2.0"}
    assert torch.equal(images(loaded.generator), images(generator))
    save_generator(path, generator, {}, storage="float16")
    assert relative_difference(images(open_checkpoint(str(path)).generator), images(generator)) < 2e-2
