"""A real S3 server (moto, a process of its own) behind a proxy that can refuse, cut, delay and lose, on loopback.

with S3Server() as server:
    server.create_bucket("bucket")
    server.inject(Fault("answer", status=503), times=2, method="PUT")
    subprocess.run([...], env={**os.environ, **server.environment})
"""

import http.client
import itertools
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random
from types import TracebackType
from typing import Literal, Self
from urllib.parse import quote, unquote, urlsplit, urlunsplit

ACCESS_KEY = "labelmill-tests"
SECRET_KEY = "hunter2-secret-key"  # what no message, log or file may show
# Listings come in pages, of 1000 on S3; small ones let small tests turn them.
PAGE_SIZE = 5

# Ends when its parent does, however that ends: then standard input is closed.
_MOTO = """
import logging, sys
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
server.stop()
"""
# As S3 does, it quotes what the client sent, secrets included.
_S3_ERROR = """<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>{code}</Code><Message>Injected.</Message><Token-0>{token}</Token-0><Request>{request}</Request></Error>"""
_CODES = {307: "TemporaryRedirect", 403: "AccessDenied", 409: "ConditionalRequestConflict", 500: "InternalError"}
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "te", "upgrade", "date", "server"}


@dataclass(frozen=True)
class Fault:
    """What the proxy does to one request instead of handing it on."""

    kind: Literal["answer", "cut", "half", "delay", "hang"]
    """answer: replies `status`. cut: resets the connection. half: hands on, then cuts the reply in the middle of its
    body. delay: hands on after `seconds`. hang: says nothing until `clear`."""
    stored: bool = False
    """With answer and cut: the server gets the request first, and its own reply is lost."""
    status: int = 503
    code: str | None = None
    """S3's word for the error, in the reply's body; by default one that fits the status."""
    seconds: float = 0.0


@dataclass(frozen=True)
class Request:
    """A request that the proxy has seen, and its status as the client saw it; 0 where the connection was cut."""

    method: str
    path: str
    """Unquoted, without query: /bucket/key."""
    status: int


@dataclass
class _Scripted:
    fault: Fault
    times: int
    method: str
    path: re.Pattern[str]


class S3Server:
    """Use as a context. Everything may be called from any thread; other processes need only `environment`."""

    def __init__(self) -> None:
        self.stripped_headers: set[str] = set()
        """Lower-case names of headers that the server never gets to see, such as if-none-match."""
        self.speaks_google = False
        """Serve Google Cloud Storage instead, at `endpoint`, unsigned: its XML language is S3's, but for headers."""
        self._scripted: list[_Scripted] = []
        self._shares: Mapping[Fault, float] = {}
        self._seed = 0
        self._seen: Counter[tuple[str, str]] = Counter()
        self._requests: list[Request] = []
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._hanging = threading.Event()
        self._create_lock = threading.Lock()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        moto = subprocess.Popen(
            [sys.executable, "-c", _MOTO],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "MOTO_S3_DEFAULT_MAX_KEYS": str(PAGE_SIZE)},
        )
        assert moto.stdin is not None and moto.stdout is not None
        self._stack.callback(moto.wait)
        self._stack.callback(moto.stdin.close)
        self._moto_port = int(moto.stdout.readline())
        proxy = _Proxy(("127.0.0.1", 0), _Handler)
        proxy.owner = self
        threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        self._stack.callback(proxy.server_close)
        self._stack.callback(proxy.shutdown)
        self.endpoint = f"http://127.0.0.1:{proxy.server_address[1]}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def environment(self) -> dict[str, str]:
        """What a process sets to talk to this server."""
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
        }

    @property
    def direct_endpoint(self) -> str:
        """The server's own address, for observers that no fault should befall."""
        return f"http://127.0.0.1:{self._moto_port}"

    @property
    def requests(self) -> list[Request]:
        """All requests so far, in the order in which they were answered."""
        with self._lock:
            return list(self._requests)

    def count(self, method: str, path: str = "", status: int | None = None) -> int:
        """How many requests so far had this method, a path that `path` (a regular expression) is found in, status."""
        return sum(
            request.method == method and re.search(path, request.path) is not None and status in (None, request.status)
            for request in self.requests
        )

    def create_bucket(self, name: str = "") -> str:
        """Make a bucket, of a new name unless given one of three characters or more, and return its URL."""
        name = name or f"bucket-{next(self._numbers)}"
        self.ask("PUT", f"/{name}")
        return f"s3://{name}"

    def ask(self, method: str, path: str, content: bytes | None = None) -> tuple[Message, bytes]:
        """Headers and content of the server's answer, past the proxy and the store under test.

        `path` is /bucket/key, quoted. Raises urllib.error.HTTPError.
        """
        headers = {"Authorization": f"AWS {ACCESS_KEY}:unchecked"}
        request = urllib.request.Request(f"{self.direct_endpoint}{path}", content, headers, method=method)
        with urllib.request.urlopen(request) as reply:
            return reply.headers, reply.read()

    def inject(self, fault: Fault, *, times: int = 1, method: str = "", path: str = "") -> None:
        """Let a fault befall the next `times` requests whose method is `method` (any if empty) and in whose path
        (/bucket/key) the regular expression `path` is found. Faults are used up in the order of injection."""
        with self._lock:
            self._scripted.append(_Scripted(fault, times, method, re.compile(path)))

    def inject_randomly(self, shares: Mapping[Fault, float], seed: int) -> None:
        """From now on let each fault befall its share of all requests. Empty: none.

        Whether a request is hit follows from the seed, its method and path and how often they were seen before, so
        that equal requests meet equal faults in whatever order they come.
        """
        assert sum(shares.values()) <= 1
        with self._lock:
            self._shares, self._seed = dict(shares), seed
            self._seen.clear()

    def clear(self) -> None:
        """No faults any more, no stripped headers, no requests remembered. Buckets stay."""
        with self._lock:
            self._scripted, self._shares, self._requests = [], {}, []
            self.stripped_headers, self.speaks_google = set(), False
            self._hanging.set()
            self._hanging = threading.Event()

    def _fault_for(self, method: str, path: str) -> Fault | None:
        with self._lock:
            for scripted in self._scripted:
                if scripted.times and scripted.method in ("", method) and scripted.path.search(path):
                    scripted.times -= 1
                    return scripted.fault
            self._seen[method, path] += 1
            draw = Random(f"{self._seed} {method} {path} {self._seen[method, path]}").random()
            for fault, share in self._shares.items():
                draw -= share
                if draw < 0:
                    return fault
        return None

    def _note(self, request: Request) -> None:
        with self._lock:
            self._requests.append(request)


def _generation(tag: str) -> str:
    """Google numbers what a file has been; a tag is as good a number."""
    return str(int(tag.strip('"'), 16))


def _tag(generation: str) -> str:
    return f'"{int(generation):032x}"'


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    owner: S3Server

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that are killed in the middle of a request are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Proxy

    def log_message(self, *args: object) -> None:
        pass

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        server, path = self.server.owner, unquote(urlsplit(self.path).path)
        fault = server._fault_for(self.command, path)
        if fault is not None and fault.kind == "delay":
            time.sleep(fault.seconds)
        if fault is not None and fault.kind == "hang":
            server._hanging.wait()
            self._reset()
            return
        if fault is None or fault.kind in ("half", "delay") or fault.stored:
            status, headers, content = self._forward(body)
        if fault is not None and fault.kind == "answer":
            status, headers, content = fault.status, {"Content-Type": "application/xml"}, self._error(fault)
        if fault is not None and fault.kind == "cut":
            server._note(Request(self.command, path, 0))
            self._reset()
            return
        is_cut = fault is not None and fault.kind == "half" and len(content) > 1
        server._note(Request(self.command, path, 0 if is_cut else status))
        self._reply(status, headers, content, len(content) // 2 if is_cut else len(content))
        if is_cut:
            self._reset()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        server = self.server.owner
        headers, target = {name.lower(): value for name, value in self.headers.items()}, self.path
        if server.speaks_google:
            parts = urlsplit(target)  # its client writes bucket%2D1, which moto does not read as bucket-1
            target = urlunsplit(("", "", quote(unquote(parts.path)), parts.query, ""))
            headers = {name.replace("x-goog-meta-", "x-amz-meta-"): value for name, value in headers.items()}
            headers["authorization"] = f"AWS {ACCESS_KEY}:unchecked"
            generation = headers.pop("x-goog-if-generation-match", None)
            if generation is not None:
                headers.update({"if-none-match": "*"} if generation == "0" else {"if-match": _tag(generation)})
        headers = {name: value for name, value in headers.items() if name not in server.stripped_headers}
        with ExitStack() as stack:
            if headers.keys() & {"if-none-match", "if-match"}:
                # S3 decides conditional puts atomically; moto looks first and stores later.
                stack.enter_context(server._create_lock)
            moto = http.client.HTTPConnection("127.0.0.1", server._moto_port, timeout=60)
            stack.callback(moto.close)
            moto.request(self.command, target, body, headers)
            reply = moto.getresponse()
            kept = {name: value for name, value in reply.getheaders() if name.lower() not in _HOP_BY_HOP}
            if server.speaks_google:
                kept = {name.lower().replace("x-amz-meta-", "x-goog-meta-"): value for name, value in kept.items()}
                if "etag" in kept:
                    kept["x-goog-generation"] = _generation(kept["etag"])
            if self.command == "HEAD":
                kept["Content-Length"] = reply.getheader("Content-Length") or "0"
            return reply.status, kept, reply.read()

    def _reply(self, status: int, headers: Mapping[str, str], content: bytes, num_bytes: int) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:num_bytes])
            self.wfile.flush()

    def _reset(self) -> None:
        """Close with a reset, as a crashed server's kernel does."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def _error(self, fault: Fault) -> bytes:
        code = fault.code or _CODES.get(fault.status, "SlowDown")
        quoted = self.headers.get("Authorization", "").replace("<", "")
        return _S3_ERROR.format(code=code, token=self.headers.get("x-amz-security-token"), request=quoted).encode()
