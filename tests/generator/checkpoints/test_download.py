"""Checkpoints from web servers that are slow, break off, ignore ranges, send elsewhere or never end."""

import hashlib
import random
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from labelmill.pipeline.generator.checkpoints import download as module
from labelmill.pipeline.generator.checkpoints.download import download
from labelmill.schemas.errors import CheckpointError

CONTENT = random.Random(0).randbytes(3_000_000)
MOST = 2**30


class Site:
    """A web server on loopback. `answer` is what it does with a request, counted from 0."""

    def __init__(self) -> None:
        site = self
        self.answer: Callable[[BaseHTTPRequestHandler, int], None] = lambda handler, number: send(handler)
        self.ranges: list[str | None] = []
        self.ended = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.ranges.append(self.headers.get("Range"))
                site.answer(self, len(site.ranges) - 1)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/model%20a.pkl"


def send(
    handler: BaseHTTPRequestHandler,
    *,
    content: bytes = CONTENT,
    heeds_range: bool = True,
    cut_after: int | None = None,
    tag: str | None = '"one"',
) -> None:
    """The content, or the part that was asked for; the connection ends after `cut_after` bytes of it."""
    asked = handler.headers.get("Range") if heeds_range else None
    if_range = handler.headers.get("If-Range")
    start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and if_range in (None, tag) else 0
    handler.send_response(206 if start else 200)
    if start:
        handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
    if tag is not None:
        handler.send_header("ETag", tag)
    handler.send_header("Content-Length", str(len(content) - start))
    handler.end_headers()
    handler.wfile.write(content[start:] if cut_after is None else content[start : start + cut_after])


def refuse(handler: BaseHTTPRequestHandler, status: int, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", "0")
    handler.end_headers()


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(module, "FIRST_WAIT_SECONDS", 0.01)
    site = Site()
    thread = threading.Thread(target=lambda: site.server.serve_forever(0.02), daemon=True)
    thread.start()
    yield site
    site.ended.set()
    site.server.shutdown()
    site.server.server_close()
    thread.join()


def test_a_connection_that_breaks_is_resumed(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.answer = lambda handler, number: send(handler, cut_after=1_000_000 if number < 2 else None)
    assert download(site.url, MOST) == CONTENT
    assert site.ranges == [None, "bytes=1000000-", "bytes=2000000-"]
    said = capsys.readouterr().err
    assert f"{site.url}: the connection ended early after 1.0 MB; trying again in 0.01 s" in said


def test_a_server_without_ranges_starts_anew(site: Site) -> None:
    site.answer = lambda handler, number: send(handler, heeds_range=False, cut_after=2_000_000 if number < 2 else None)
    assert download(site.url, MOST) == CONTENT
    assert site.ranges == [None, "bytes=2000000-", "bytes=2000000-"]


@pytest.mark.parametrize("heeds_if_range", [True, False])
def test_a_file_that_changes_meanwhile_is_never_mixed(heeds_if_range: bool, site: Site) -> None:
    new = CONTENT[::-1]

    def answer(handler: BaseHTTPRequestHandler, number: int) -> None:
        if number == 0:
            send(handler, cut_after=1_000_000)
            return
        if not heeds_if_range:
            del handler.headers["If-Range"]
        send(handler, content=new, tag='"two"')

    site.answer = answer
    assert download(site.url, MOST) == new


def test_a_slow_line_is_waited_for_as_long_as_bytes_come(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """For longer than it may be silent."""
    monkeypatch.setattr(module, "STALL_SECONDS", 1.0)
    monkeypatch.setattr(module, "LINE_SECONDS", 0.3)

    def answer(handler: BaseHTTPRequestHandler, number: int) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(CONTENT)))
        handler.end_headers()
        for start in range(0, len(CONTENT), len(CONTENT) // 10):
            handler.wfile.write(CONTENT[start : start + len(CONTENT) // 10])
            site.ended.wait(0.13)

    site.answer = answer
    assert download(site.url, MOST) == CONTENT
    assert len(site.ranges) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 3 and f"fetching {site.url}: " in lines[0] and " of 3.0 MB, " in lines[0]
    assert lines[-1].endswith(f"sha256 {hashlib.sha256(CONTENT).hexdigest()}")


@pytest.mark.parametrize("drips", [True, False])
def test_a_server_that_stalls_is_given_up(drips: bool, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STALL_SECONDS", 0.3)
    monkeypatch.setattr(module, "MOST_TRIES", 3)

    def answer(handler: BaseHTTPRequestHandler, number: int) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        while not site.ended.wait(0.02):
            if drips:
                handler.wfile.write(b"x")

    site.answer = answer
    words = r"only \d+ bytes came in 0\.3 s" if drips else r"nothing came for 0\.3 s"
    with pytest.raises(CheckpointError, match=rf"{site.url}: cannot fetch the checkpoint: {words}, 3 times in a row"):
        download(site.url, MOST)


def test_answers_that_pass_are_waited_for(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.answer = lambda handler, number: refuse(handler, 503) if number < 3 else send(handler)
    assert download(site.url, MOST) == CONTENT
    monkeypatch.setattr(module, "MOST_TRIES", 2)
    site.answer = lambda handler, number: refuse(handler, 429)
    with pytest.raises(CheckpointError, match="the server answered 429, 2 times in a row"):
        download(site.url, MOST)


@pytest.mark.parametrize(
    ("status", "words"), [(404, "no such file"), (403, "answered 403: it wants a login"), (405, "answered 405$")]
)
def test_answers_that_stay_are_told_at_once(status: int, words: str, site: Site) -> None:
    site.answer = lambda handler, number: refuse(handler, status)
    with pytest.raises(CheckpointError, match=words):
        download(site.url, MOST)
    assert len(site.ranges) == 1


def test_redirects(site: Site) -> None:
    def answer(handler: BaseHTTPRequestHandler, number: int) -> None:
        if handler.path.endswith("/there.pkl?sign=SECRET"):
            send(handler, cut_after=1_000_000 if number < 2 else None)
        else:
            refuse(handler, 302, Location="/there.pkl?sign=SECRET")

    site.answer = answer
    assert download(site.url, MOST) == CONTENT
    assert site.ranges == [None, None, "bytes=1000000-", "bytes=1000000-"]
    for target in ("ftp://127.0.0.1/x?sign=SECRET", "file:///etc/hostname"):
        site.answer = lambda handler, number, target=target: refuse(handler, 302, Location=target)
        with pytest.raises(CheckpointError) as refused:
            download(site.url, MOST)
        assert "SECRET" not in str(refused.value)
    site.answer = lambda handler, number: refuse(handler, 302, Location=handler.path)
    with pytest.raises(CheckpointError, match="answered 302, after too many redirects"):
        download(site.url, MOST)


@pytest.mark.parametrize("says_length", [True, False])
def test_what_is_too_large_is_refused(says_length: bool, site: Site) -> None:
    def answer(handler: BaseHTTPRequestHandler, number: int) -> None:
        handler.send_response(200)
        if says_length:
            handler.send_header("Content-Length", str(len(CONTENT)))
        handler.end_headers()
        handler.wfile.write(CONTENT)

    site.answer = answer
    with pytest.raises(CheckpointError, match=r"bytes or more; no StyleGAN2 checkpoint passes 2,500,000\. Is it"):
        download(site.url, 2_500_000)
    assert download(site.url, 3_000_000) == CONTENT
