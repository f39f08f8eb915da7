"""The store on a bucket whose service stumbles, refuses and lies: what is tried again, and what is said."""

import json
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers.drivers import wait_until
from helpers.s3_server import PAGE_SIZE, SECRET_KEY, Fault, Request, S3Server
from helpers.small_dataset import CHECKPOINT, config_of

from labelmill.pipeline.dataset.claim import claim_output
from labelmill.pipeline.process.interruption import Interrupted, interruptible
from labelmill.pipeline.process.log import LOG_VARIABLE
from labelmill.pipeline.store import bucket, bucket_address
from labelmill.pipeline.store.store import Store, StoredFile, Version
from labelmill.schemas.errors import ConfigError, OutputError
from labelmill.schemas.fingerprint import identity


@pytest.fixture
def url(s3: S3Server) -> str:
    return f"{s3.create_bucket()}/out"


@pytest.fixture
def store(url: str) -> Store:
    return Store.open(url)


def quick_to_give_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "PATIENCE_SECONDS", 1.0)
    monkeypatch.setattr(bucket, "FIRST_PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(bucket_address, "_MAX_RETRIES", 0)


@pytest.mark.parametrize(
    ("url", "root"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://my.bucket-1/a/b c/Ünï_1/", "s3://my.bucket-1/a/b c/Ünï_1"),
        ("gs://bucket/a", "gs://bucket/a"),
        ("az://container/a", "az://container/a"),
    ],
)
def test_urls_that_name_a_bucket(url: str, root: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    store = Store.open(url)
    assert (store.url, store.folder) == (root, None)
    assert s3.requests == []


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("https://bucket.s3.amazonaws.com/a", "https:// is not supported; use a local folder, s3://BUCKET/PREFIX"),
        ("S3://bucket", "S3:// is not supported"),
        ("s3://", r"s3://: '' is not a bucket name"),
        ("s3:///a", r"'' is not a bucket name"),
        ("s3://ab", r"'ab' is not a bucket name: three or more lower-case letters"),
        ("s3://Bucket/a", r"'Bucket' is not a bucket name"),
        ("s3://bucket:9000/a", r"'bucket:9000' is not a bucket name"),
        ("s3://[bucket/a", r"'\[bucket' is not a bucket name"),
        ("s3://bucket//a", r"'' cannot be a folder in a bucket: .*nor nothing between two /"),
        ("s3://bucket/a/../b", r"'\.\.' cannot be a folder in a bucket"),
        ("s3://bucket/a%20b", r"'a%20b' cannot be a folder"),
        ("s3://bucket/a*", r"'a\*' cannot be a folder"),
        ("s3://bucket/a\nb", "s3://...: the URL holds control characters"),
    ],
)
def test_urls_that_name_none_are_explained(url: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=f"^output: .*{sentence}"):
        Store.open(url)


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:hunter2@bucket/a",
        "s3://key:hun/ter2@bucket/a",
        "s3://bucket/a?X-Amz-Signature=hunter2",
        "az://container/a?sig=hunter2",
        "gs://bucket/a#hunter2",
        "s3a://key:hunter2@bucket",
    ],
)
def test_secrets_in_urls_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Store.open(url)
    shown = "".join(traceback.format_exception(refused.value))
    assert "ter2" not in str(refused.value) and "ter2" not in shown.replace("hunter2_shown", "")


@pytest.mark.parametrize(
    "value", ["", "localhost:9000", "http://key:hunter2@host", "https://host/?hunter2", "http://a b"]
)
def test_endpoints_that_are_none_are_refused_and_not_shown(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", value)
    with pytest.raises(ConfigError, match="AWS_ENDPOINT_URL: is not the address of a server") as refused:
        Store.open("s3://bucket/a")
    assert not value or value not in "".join(traceback.format_exception(refused.value))


def test_settings_that_do_not_fit_are_refused_and_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "hunter2")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
    with pytest.raises(ConfigError, match="check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION"):
        Store.open("s3://bucket/a")
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(ConfigError, match=r"az://container: .* check AZURE_STORAGE_ACCOUNT_NAME"):
        Store.open("az://container")
    (tmp_path / "key.json").write_text('{"private_key": "hunter2"')
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    with pytest.raises(ConfigError, match=r"gs://bucket: .* check GOOGLE_APPLICATION_CREDENTIALS") as refused:
        Store.open("gs://bucket")
    assert "hunter2" not in "".join(traceback.format_exception(refused.value)[-1])


OPERATIONS: dict[str, tuple[Callable[[Store], object], object]] = {
    "create": (lambda store: store.create("new", b"new"), True),
    "create in vain": (lambda store: store.create("old", b"new"), False),
    "claim": (lambda store: store.claim("new", b"new"), True),
    "replace": (lambda store: store.replace("old", b"new"), None),
    "read": (lambda store: store.read("old"), b"old"),
    "exists": (lambda store: (store.exists("old"), store.exists("new")), (True, False)),
    "swap": (lambda store: store.compare_and_swap("old", b"new", store.read_versioned("old").version), True),
    "swap in vain": (lambda store: store.compare_and_swap("old", b"new", Version("0" * 32)), False),
    "swap with nothing": (lambda store: store.compare_and_swap("new", b"new", None), True),
    "folders": (lambda store: store.folders(), []),
    "list": (lambda store: store.list(), [StoredFile("old", 3)]),
    "first_file": (lambda store: store.first_file(), "old"),
    "delete": (lambda store: store.delete("old"), None),
}
PASSING = [
    Fault("answer", status=503),
    Fault("answer", status=400, code="RequestTimeout"),
    Fault("answer", status=503, stored=True),
    Fault("cut"),
    Fault("cut", stored=True),
    Fault("half"),
]


@pytest.mark.parametrize(
    "fault", PASSING, ids=lambda fault: f"{fault.kind}-{fault.code or fault.status}-{fault.stored}"
)
@pytest.mark.parametrize("name", OPERATIONS)
def test_what_may_pass_is_tried_again_and_nobody_notices(name: str, fault: Fault, store: Store, s3: S3Server) -> None:
    operation, expected = OPERATIONS[name]
    store.create("old", b"old")
    s3.clear()
    # An answer to HEAD has no body, hence no code.
    for method in ("GET", "PUT", "POST", "DELETE", "HEAD")[: -1 if fault.code else None]:
        s3.inject(fault, method=method)
    assert operation(store) == expected
    statuses = {request.status for request in s3.requests}
    has_no_body = fault.kind == "half" and name not in ("read", "list", "folders", "swap", "first_file", "delete")
    assert statuses & {0, 503, 400} or has_no_body or (fault.code and name == "exists")
    s3.clear()
    assert store.exists("new") == (name in ("create", "claim", "swap with nothing"))
    assert store.exists("old") == (name != "delete")


@pytest.mark.parametrize("status", [408, 429, 500, 502, 504])
def test_statuses_that_may_pass(status: int, store: Store, s3: S3Server) -> None:
    s3.inject(Fault("answer", status=status), times=2)
    assert store.create("a", b"")
    assert [request.status for request in s3.requests] == [status, status, 200]


def test_a_request_that_hangs_is_sent_again(url: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    from datetime import timedelta

    monkeypatch.setattr(bucket_address, "_REQUEST_TIMEOUT", timedelta(seconds=0.7))
    store = Store.open(url)
    for method in ("PUT", "GET"):
        s3.inject(Fault("delay", seconds=1.5), method=method)
    assert store.create("a", b"mine")
    assert store.read("a") == b"mine"
    wait_until(lambda: s3.count("PUT", "/a$") >= 2)  # the request that hung has arrived, too late
    assert store.read("a") == b"mine"


def test_a_create_whose_answer_is_lost_is_still_the_winner(store: Store, url: str, s3: S3Server) -> None:
    """503 after storing: the repeated request meets what the first one wrote."""
    s3.inject(Fault("answer", status=503, stored=True), method="PUT", path="out/a$")
    assert store.create("a", b"ours")
    assert [request.status for request in s3.requests if request.method == "PUT"] == [503, 412]
    assert not Store.open(url).create("a", b"ours")  # the same bytes, from another


def test_a_create_that_lost_while_its_answer_was_lost_is_a_loser(store: Store, s3: S3Server) -> None:
    store.create("a", b"theirs")
    s3.inject(Fault("cut", stored=True), method="PUT")
    assert not store.create("a", b"ours")
    assert store.read("a") == b"theirs"


def test_a_conflict_is_tried_again_until_someone_has_won(store: Store, s3: S3Server) -> None:
    s3.inject(Fault("answer", status=409), times=2, method="PUT")
    assert store.create("a", b"ours")
    store.replace("b", b"old")
    s3.inject(Fault("answer", status=409), method="PUT")
    store.replace("b", b"new")
    assert (store.read("a"), store.read("b")) == (b"ours", b"new")


def test_a_race_in_a_storm_has_one_winner(url: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    storm = {
        Fault("answer", status=503): 0.1,
        Fault("answer", status=503, stored=True): 0.1,
        Fault("cut"): 0.1,
        Fault("cut", stored=True): 0.1,
        Fault("half"): 0.1,
    }
    s3.inject_randomly(storm, seed=5)
    monkeypatch.setattr(bucket, "FIRST_WAIT_SECONDS", 0.01)
    stores = [Store.open(url) for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        for path in [f"shards/{number}" for number in range(8)]:
            won = list(threads.map(lambda store, path=path: store.create(path, b"equal"), stores))
            assert won.count(True) == 1
    assert [file.num_bytes for file in stores[0].list()] == [5] * 8
    assert len({request.status for request in s3.requests}) >= 4


def test_equal_seeds_make_equal_storms(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(bucket_address, "_MAX_RETRIES", 0)

    def storm(seed: int) -> list[Request]:
        s3.clear()
        s3.inject_randomly({Fault("answer"): 0.3, Fault("cut"): 0.2}, seed)
        store = Store.open(url)
        for number in range(8):
            store.replace(str(number), b"")
        return s3.requests

    url = s3.create_bucket("storm")  # faults follow from paths
    assert storm(1) == storm(1) != storm(2)
    shares = [sum(request.status == status for request in storm(3)) / len(s3.requests) for status in (503, 0)]
    assert shares == pytest.approx([0.3, 0.2], abs=0.2)


PERMANENT = [
    (Fault("answer", status=403), r"the service answered 403 AccessDenied: no permission\. .* read, write and delete"),
    (Fault("answer", status=403, code="InvalidAccessKeyId"), r"credentials are not valid here\. Check AWS_ACCESS_KEY"),
    (Fault("answer", status=400, code="ExpiredToken"), r"the credentials have expired\. Get new ones"),
    (Fault("answer", status=301), r"is in another region\. Set AWS_REGION"),
    (Fault("answer", status=400, code="AuthorizationHeaderMalformed"), r"is in another region\. Set AWS_REGION"),
    (Fault("answer", status=403, code="RequestTimeTooSkewed"), "clock is wrong"),
    (Fault("answer", status=400, code="InvalidRequest"), "the service answered 400 InvalidRequest"),
    (Fault("answer", status=404, code="NoSuchBucket"), r"there is no bucket bucket-\d+\. Check its name, or create it"),
]


@pytest.mark.parametrize(("fault", "sentence"), PERMANENT)
def test_what_will_not_pass_is_explained_at_once_without_secrets(
    fault: Fault, sentence: str, url: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "hunter2-token")
    store = Store.open(url)
    s3.inject(fault, times=100)
    refusals: list[tuple[str, Callable[[], object]]] = [
        (r"out/a: cannot be written", lambda: store.create("a", b"")),
        (r"out/a: cannot be written", lambda: store.replace("a", b"")),
        (r"out/a: cannot be read", lambda: store.read("a")),
        (r"out: cannot be listed", lambda: store.list()),
        (r"out: cannot be listed", lambda: store.first_file()),
        (r"out/a: cannot be deleted", lambda: store.delete("a")),
    ]
    for place, refuse in refusals:
        with pytest.raises(OutputError, match=f"^s3://bucket-.*{place}: .*{sentence}") as refused:
            refuse()
        shown = "".join(traceback.format_exception(refused.value))
        assert "hunter2" not in shown and "Signature=" not in shown
        assert len(str(refused.value).splitlines()) == 1
    assert len(s3.requests) == len(refusals)


def test_a_missing_bucket_is_named(s3: S3Server) -> None:
    store = Store.open("s3://missing/out")
    for attempt in (store.first_file, store.list, lambda: store.read("a"), lambda: store.create("a", b"")):
        with pytest.raises(OutputError, match=r"^s3://missing/out.*there is no bucket missing\. Check its name"):
            attempt()
    with pytest.raises(OutputError, match="there is no bucket missing"):
        claim_output(store, {})


@pytest.mark.parametrize("fault", [Fault("answer", status=404), Fault("answer", status=403), Fault("cut")])
def test_missing_credentials_are_explained_at_once(
    fault: Fault, url: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine without a role, whose metadata service does not answer or has none to give."""
    monkeypatch.setattr(bucket_address, "_MAX_RETRIES", 0)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", s3.endpoint)
    s3.inject(fault, times=100, path="^/latest")
    expected = r"no credentials\. Set AWS_ACCESS_KEY_ID.* or work on a machine that has a role"
    for attempt in (lambda: Store.open(url).read("a"), lambda: Store.open(url).exists("a")):
        with pytest.raises(OutputError, match=expected):
            attempt()
    assert s3.count("GET", "/bucket") == s3.count("HEAD", "/bucket") == 0


def test_a_service_that_never_answers_is_given_up_soon(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    quick_to_give_up(monkeypatch)
    monkeypatch.setattr(bucket, "PATIENCE_SECONDS", 60.0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    start = time.monotonic()
    expected = (
        r"out/a: cannot be read: http://127\.0\.0\.1:9 \(AWS_ENDPOINT_URL\) cannot be reached\. Check the network"
    )
    with pytest.raises(OutputError, match=expected):
        Store.open(url).read("a")
    assert 0.1 < time.monotonic() - start < 10


def test_a_service_that_stops_answering_is_waited_for(
    url: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quick_to_give_up(monkeypatch)
    monkeypatch.setenv(LOG_VARIABLE, "json")
    monkeypatch.setattr(bucket, "QUIET_SECONDS", 0.1)
    store = Store.open(url)
    assert store.create("a", b"")
    s3.inject(Fault("answer"), times=1000)
    start = time.monotonic()
    with pytest.raises(OutputError, match="answered 503 SlowDown, repeatedly"):
        store.create("b", b"")
    assert 1.0 < time.monotonic() - start < 10
    (said,) = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert said["message"] == f"{url}/b: the service answered 503 SlowDown; trying again for 1 s"
    assert said["level"] == "warning"


def test_signals_end_the_waiting(url: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_address, "_MAX_RETRIES", 1)
    store = Store.open(url)
    s3.inject(Fault("answer"), times=1000)
    start = time.monotonic()
    with interruptible(), pytest.raises(Interrupted):
        threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
        store.create("a", b"")
    assert time.monotonic() - start < 10


def test_patience_is_bounded() -> None:
    """Of an operation: minutes of trying, and the one request in progress when they end."""
    assert bucket.FIRST_PATIENCE_SECONDS <= 60 <= bucket.PATIENCE_SECONDS <= 900
    # Deaf to signals for so long; and signatures, which obstore does not renew, last five minutes at least.
    assert bucket_address._RETRY_TIMEOUT.total_seconds() <= 15
    assert bucket_address._REQUEST_TIMEOUT.total_seconds() <= 300


def test_a_file_is_one_request(store: Store, s3: S3Server) -> None:
    """However large: parts of a killed upload would stay in the bucket unseen."""
    store.replace("a", bytes(12_000_000))
    store.create("b", bytes(12_000_000))
    # Tried again where a connection broke, but each time whole: an upload in parts begins with a POST.
    root = store.url.removeprefix("s3:/")
    own = {(request.method, request.path) for request in s3.requests if request.path.startswith(root)}
    assert own == {("PUT", f"{root}/a"), ("PUT", f"{root}/b")}


def test_browsers_are_told_what_pages_are(store: Store, s3: S3Server) -> None:
    expected = {"a.html": "text/html; charset=utf-8", "a.json": "application/json", "a.tar": "binary/octet-stream"}
    for write in (store.replace, store.create):
        for path in expected:
            store.delete(path)
            write(path, b"{}")
        root = store.url.removeprefix("s3:/")
        assert {path: s3.ask("GET", f"{root}/{path}")[0]["Content-Type"] for path in expected} == expected


def test_listings_have_pages(store: Store, s3: S3Server) -> None:
    paths = [f"shards/{number:03d}" for number in range(3 * PAGE_SIZE + 1)]
    for path in paths:
        store.create(path, b"x")
    s3.clear()
    assert [file.path for file in store.list()] == paths
    assert s3.count("GET") == 4
    s3.clear()
    assert store.first_file() == paths[0]
    assert s3.count("GET") == 1


def test_folders_that_consoles_make_are_no_files(store: Store, url: str, s3: S3Server) -> None:
    root = url.removeprefix("s3:/")
    s3.ask("PUT", f"{root}/")
    assert store.list() == [] and store.first_file() is None
    claim_output(store, {})
    s3.ask("PUT", f"{root}/shards/")
    store.create("shards/a.tar", b"a")
    assert [file.path for file in store.list()] == ["run.json", "shards/a.tar"]
    assert [file.path for file in store.list("shards")] == ["shards/a.tar"]


def test_names_that_are_no_paths_are_told(store: Store, url: str, s3: S3Server) -> None:
    s3.ask("PUT", f"{url.removeprefix('s3:/')}/a//b")
    with pytest.raises(OutputError, match=r"out: cannot be listed: .*a//b.* contained empty path segment"):
        store.list()


def _claim(store: Store, psi: float = 0.5) -> None:
    config = config_of(Path("out"))
    generator = config.generator.model_copy(update={"truncation_psi": psi})
    claim_output(store, identity(config.model_copy(update={"generator": generator}), CHECKPOINT.sha256, {}))


OVERWRITES = r"out: overwrites a file that exists although asked not to.* ignores `If-None-Match: \*` on PUT"


def test_a_server_that_overwrites_is_refused_and_left_clean(store: Store, s3: S3Server) -> None:
    s3.stripped_headers = {"if-none-match"}
    with pytest.raises(OutputError, match=OVERWRITES):
        _claim(store)
    assert store.list() == []
    s3.stripped_headers = set()
    _claim(store)
    assert [file.path for file in store.list()] == ["run.json"]


def test_drivers_side_by_side_are_all_refused_by_a_server_that_overwrites(s3: S3Server) -> None:
    s3.stripped_headers = {"if-none-match"}
    bucket_url = s3.create_bucket()

    def claim(url: str, psi: float) -> str:
        try:
            _claim(Store.open(url), psi)
        except OutputError as error:
            return str(error)
        return "accepted"

    with ThreadPoolExecutor(4) as threads:
        for number in range(10):
            url = f"{bucket_url}/{number}"
            said = list(threads.map(claim, [url] * 4, [0.1, 0.2, 0.3, 0.4] if number % 2 else [0.5] * 4))
            # Some may meet a claim that is just being taken back.
            assert "accepted" not in said and any("overwrites a file" in words for words in said), said
            assert Store.open(url).list() == []


def test_a_dataset_on_a_server_that_began_to_overwrite_keeps_its_claim(store: Store, s3: S3Server) -> None:
    _claim(store)
    store.create("shards/a.tar", b"a")
    before = store.read("run.json")
    s3.stripped_headers = {"if-none-match"}
    with pytest.raises(OutputError, match=OVERWRITES):
        _claim(store)
    assert store.read("run.json") == before


def test_a_claim_whose_answers_are_lost_is_good(store: Store, s3: S3Server) -> None:
    s3.inject(Fault("answer", stored=True), times=2, method="PUT")
    _claim(store)
    s3.inject(Fault("cut", stored=True), times=2, method="PUT")
    _claim(store)
    assert [file.path for file in store.list()] == ["run.json"]


def test_no_secret_is_stored(store: Store, s3: S3Server) -> None:
    _claim(store)
    store.create("a", b"a")
    for file in store.list():
        headers, content = s3.ask("GET", f"{store.url.removeprefix('s3:/')}/{file.path}")
        assert SECRET_KEY not in str(headers) and SECRET_KEY.encode() not in content


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_a_signal_ends_the_waiting_for_a_server_that_hangs(method: str, store: Store, s3: S3Server) -> None:
    s3.inject(Fault("hang"), times=100, method=method)
    start = time.monotonic()
    with pytest.raises(Interrupted), interruptible():
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
        if method == "PUT":
            store.create("file", b"content")
        else:
            store.read("file")
    assert time.monotonic() - start < 10
