"""Fetching GRIT's released triplets: real requests to real servers on this machine, which stand for hub and hosts."""

import hashlib
import io
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from PIL import Image

from grit_lite.cli import main
from grit_lite.errors import DataError, GritLiteError, NotFetched, UsageError
from grit_lite.triplets import accept, fetch, load, sample
from grit_lite.triplets.download import Web
from grit_lite.triplets.fetch import Outcome, failure, fetch_grit, plan_grit
from grit_lite.triplets.grit import REPOSITORY, Sources
from grit_lite.triplets.manifest import MANIFEST, Manifest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB = f"/datasets/{REPOSITORY}/resolve"


def jpeg(seed: int) -> bytes:
    """A picture of its own that does not compress well: some kilobytes."""
    pixels = np.random.default_rng(seed).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


class Handler(BaseHTTPRequestHandler):
    """Answers with what the server holds: bytes, or a function that answers by itself."""

    protocol_version = "HTTP/1.1"

    def answer(self):
        self.server.requests.append((self.command, self.path))
        content = self.server.files.get(self.path)
        if callable(content):
            content(self)
        elif content is None:
            self.reply(404, b"no", "text/plain")
        else:
            self.reply(200, content, "image/jpeg")

    do_GET = do_HEAD = answer

    def reply(self, status, body=b"", kind="image/jpeg", length=None, **headers):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


class Site(ThreadingHTTPServer):
    """A web server on this machine; `requests` lists what it was asked."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes | Callable[[Handler], None]] = {}
        self.requests: list[tuple[str, str]] = []

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def got(self, what: str = "GET") -> list[str]:
        return [path for method, path in self.requests if method == what]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def serve() -> Iterator[Callable[[], Site]]:
    running = []

    def start() -> Site:
        site = Site()
        running.append(site)
        threading.Thread(target=site.serve_forever, args=(0.01,), daemon=True).start()
        return site

    yield start
    for site in running:
        site.shutdown()
        site.server_close()


@pytest.fixture
def site(serve) -> Site:
    return serve()


@pytest.fixture
def quick() -> Iterator[Callable[..., Web]]:
    """Makes sessions that may ask the given servers, as if they were hosts on the internet, and that do not pause."""
    opened = []

    def start(*sites: Site, trusted: frozenset[str] = frozenset(), **options) -> Web:
        trusted |= {site.origin for site in sites}
        opened.append(Web(trusted, **{"pauses": (0.0, 0.0), "wait": 5.0, **options}))
        return opened[-1]

    yield start
    for web in opened:
        web.__exit__()


@pytest.fixture
def web(site, quick) -> Web:
    return quick(site)


def cut(content: bytes, at: int) -> Callable[[Handler], None]:
    """Promises all of the content, sends its first bytes, and hangs up."""

    def answer(handler: Handler) -> None:
        handler.reply(200, content[:at], length=len(content))
        handler.close_connection = True

    return answer


def first(*answers: bytes | Callable[[Handler], None]) -> Callable[[Handler], None]:
    """Each answer once, to GET; the last one from then on."""
    left = list(answers)

    def answer(handler: Handler) -> None:
        content = left.pop(0) if len(left) > 1 and handler.command == "GET" else left[0]
        content(handler) if callable(content) else handler.reply(200, content)

    return answer


def redirect(to: str) -> Callable[[Handler], None]:
    return lambda handler: handler.reply(302, Location=to)


# --- one file


def test_a_file_comes_from_the_first_address_that_has_it(site, web):
    site.files["/b.jpg"] = b"content"
    addresses = [f"{site.origin}/a.jpg", f"{site.origin}/b.jpg", f"{site.origin}/c.jpg"]
    assert web.fetch(addresses, 100) == (b"content", addresses[1])
    assert web.size(addresses) == len(b"content")
    assert site.got() == ["/a.jpg", "/b.jpg"]
    assert site.got("HEAD") == ["/a.jpg", "/b.jpg"]


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_file_that_no_host_has_is_reported_with_every_address(site, web, status):
    site.files["/a.jpg"] = lambda handler: handler.reply(status, b"no")
    with pytest.raises(DataError, match=rf"/a.jpg: HTTP {status} .*/b.jpg: HTTP 404 Not Found"):
        web.fetch([f"{site.origin}/a.jpg", f"{site.origin}/b.jpg"], 100)
    assert web.size([f"{site.origin}/a.jpg"]) is None
    assert site.got() == ["/a.jpg", "/b.jpg"]


@pytest.mark.parametrize("at", [0, 1, 1000, -1])
def test_a_file_that_is_cut_off_at_any_byte_is_asked_for_again(site, web, at):
    content = jpeg(0)
    site.files["/a.jpg"] = first(cut(content, at), content)
    assert web.fetch([f"{site.origin}/a.jpg"], 10**6)[0] == content
    assert site.got() == ["/a.jpg"] * 2


def test_a_file_that_is_always_cut_off_is_given_up(site, web):
    site.files["/a.jpg"] = cut(jpeg(0), 700)
    with pytest.raises(NotFetched, match=r"/a.jpg: peer closed connection"):
        web.fetch([f"{site.origin}/a.jpg"], 10**6)
    assert site.got() == ["/a.jpg"] * 3


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_fault_of_the_host_is_waited_out(site, web, status):
    site.files["/a.jpg"] = first(lambda handler: handler.reply(status), b"content")
    assert web.fetch([f"{site.origin}/a.jpg"], 100)[0] == b"content"


def test_an_answer_that_means_nothing_here_is_not_asked_for_again(site, web):
    site.files["/a.jpg"] = lambda handler: handler.reply(418)
    with pytest.raises(DataError, match=r"/a.jpg: HTTP 418"):
        web.fetch([f"{site.origin}/a.jpg"], 100)
    assert len(site.requests) == 1


def test_a_page_instead_of_an_image_is_refused(site, web):
    site.files["/a.jpg"] = lambda handler: handler.reply(200, b"<html>Please log in</html>", "text/html; charset=utf-8")
    with pytest.raises(DataError, match=r"the answer is a page \(text/html; charset=utf-8\), not an image"):
        web.fetch([f"{site.origin}/a.jpg"], 10**6)


def test_a_file_larger_than_the_limit_is_refused_by_its_header_and_by_its_bytes(site, web):
    def endless(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(bytes(10_000))
                endless.sent += 10_000
        except OSError:
            handler.close_connection = True

    endless.sent = 0
    site.files |= {"/header.jpg": lambda handler: handler.reply(200, b"", length=10**12), "/endless.jpg": endless}
    with pytest.raises(DataError, match=r"/header.jpg: it has 1,000,000,000,000 bytes; the limit is 1,000"):
        web.fetch([f"{site.origin}/header.jpg"], 1000)
    with pytest.raises(DataError, match=r"/endless.jpg: it is larger than the limit of 1,000 bytes"):
        web.fetch([f"{site.origin}/endless.jpg"], 1000)
    assert endless.sent < 100_000_000


def test_a_file_that_drips_is_given_up_at_the_deadline(site, quick):
    def drip(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        for _ in range(1000):
            try:
                handler.wfile.write(b".")
            except OSError:
                return
            time.sleep(0.02)

    site.files["/a.jpg"] = drip
    with pytest.raises(NotFetched, match=r"/a.jpg: not there after 0 seconds"):
        quick(site, pauses=(), deadline=0.2).fetch([f"{site.origin}/a.jpg"], 10**6)


def test_a_host_that_says_nothing_is_given_up(site, quick):
    quiet = threading.Event()
    site.files["/a.jpg"] = lambda handler: quiet.wait(5)
    with pytest.raises(NotFetched, match=r"/a.jpg: timed out"):
        quick(site, pauses=(), wait=0.2).fetch([f"{site.origin}/a.jpg"], 10**6)
    quiet.set()


def test_a_host_that_keeps_failing_is_left_alone_and_others_are_not(serve, quick):
    dead, alive = serve(), serve()
    dead.files["/a.jpg"] = lambda handler: handler.reply(503)
    alive.files["/a.jpg"] = b"content"
    web = quick(dead, alive, pauses=())
    for _ in range(5):
        with pytest.raises(NotFetched, match="HTTP 503"):
            web.fetch([f"{dead.origin}/a.jpg"], 100)
    for _ in range(3):
        with pytest.raises(NotFetched, match=rf"127.0.0.1:{dead.server_port} failed 5 times in a row"):
            web.fetch([f"{dead.origin}/a.jpg"], 100)
    assert len(dead.requests) == 5
    assert web.fetch([f"{alive.origin}/a.jpg"], 100)[0] == b"content"


def test_an_answer_in_between_makes_the_count_of_failures_begin_again(site, quick):
    fault = lambda handler: handler.reply(503)  # noqa: E731
    site.files["/a.jpg"] = first(*[fault] * 4, lambda handler: handler.reply(404), *[fault] * 4, b"content")
    web = quick(site, pauses=())
    for _ in range(9):
        with pytest.raises(GritLiteError):
            web.fetch([f"{site.origin}/a.jpg"], 100)
    assert web.fetch([f"{site.origin}/a.jpg"], 100)[0] == b"content"


# --- who may be asked


PRIVATE = ["127.0.0.1", "10.1.2.3", "169.254.169.254", "192.168.0.1", "100.64.0.1", "0.0.0.0"]
PRIVATE += ["[::1]", "[::ffff:127.0.0.1]", "[fd00::1]", "[fe80::1]"]
NAMED = ["localhost", "2130706433", "0x7f.1"]  # what the system's resolver makes an address of this machine


@pytest.mark.parametrize("host", PRIVATE + NAMED)
def test_an_address_that_is_not_public_is_not_asked(host, quick):
    with pytest.raises(DataError, match=r"is not on the public internet, and so not asked"):
        quick(pauses=()).fetch([f"https://{host}/a.jpg"], 100)


def test_an_unencrypted_address_is_not_asked(site, quick):
    for address in (f"{site.origin}/a.jpg", "http://example.org/a.jpg", "ftp://example.org/a.jpg"):
        with pytest.raises(DataError, match=": not https, and so not asked"):
            quick(pauses=()).fetch([address], 100)
    assert site.requests == []


def test_a_redirect_is_checked_before_it_is_followed(serve, quick):
    site, secret = serve(), serve()
    secret.files["/secret"] = b"secret"
    site.files["/plain.jpg"] = redirect(f"{secret.origin}/secret")
    site.files["/private.jpg"] = redirect(f"https://127.0.0.1:{secret.server_port}/secret")
    site.files["/metadata.jpg"] = redirect("https://169.254.169.254/latest/meta-data")
    site.files["/file.jpg"] = redirect("file:///etc/passwd")
    for path, reason in {"plain": "not https", "private": "not on the public", "metadata": "not on the public"}.items():
        with pytest.raises(DataError, match=reason):
            quick(site).fetch([f"{site.origin}/{path}.jpg"], 100)
    with pytest.raises(GritLiteError):
        quick(site).fetch([f"{site.origin}/file.jpg"], 100)
    assert secret.requests == []
    assert quick(site, secret).fetch([f"{site.origin}/plain.jpg"], 100)[0] == b"secret"  # it would have been had


def test_a_relative_redirect_is_followed_and_a_circle_is_not(site, web):
    site.files |= {"/a.jpg": redirect("/b.jpg"), "/b.jpg": b"content", "/round.jpg": redirect("/round.jpg")}
    assert web.fetch([f"{site.origin}/a.jpg"], 100)[0] == b"content"
    assert web.size([f"{site.origin}/a.jpg"]) == len(b"content")
    with pytest.raises(DataError, match=r"/round.jpg: redirected more than 5 times"):
        web.fetch([f"{site.origin}/round.jpg"], 100)


@pytest.fixture
def https_site(serve, tmp_path, monkeypatch) -> Site:
    """A server with a certificate for images.example, which this process accepts."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificate, is not installed")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=images.example"
    names = ["-addext", "subjectAltName=DNS:images.example", "-keyout", key, "-out", certificate]
    subprocess.run([*make.split(), *names], check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    site = serve()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    site.socket = context.wrap_socket(site.socket, server_side=True)
    return site


def test_a_name_that_changes_its_meaning_between_the_check_and_the_connection_is_caught(https_site, monkeypatch, quick):
    https_site.files["/a.jpg"] = b"secret"
    address = f"https://images.example:{https_site.server_port}/a.jpg"
    meanings = []

    def look_up(host, port, *_, **__):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (meanings.pop(0), port))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    meanings += ["93.184.215.14", "127.0.0.1"]
    with pytest.raises(DataError, match=r"images.example is 127.0.0.1, which is not on the public internet"):
        quick(pauses=()).fetch([address], 100)
    meanings += ["127.0.0.1"]
    trusted = frozenset({f"https://images.example:{https_site.server_port}"})
    assert quick(trusted=trusted, pauses=()).fetch([address], 100)[0] == b"secret"  # it would have been had


def test_a_certificate_of_another_name_is_refused(https_site, quick):
    address = f"https://localhost:{https_site.server_port}"
    with pytest.raises(NotFetched, match="certificate verify failed"):
        quick(trusted=frozenset({address}), pauses=()).fetch([f"{address}/a.jpg"], 100)


def test_through_a_proxy_names_are_the_proxys_to_look_up(site, monkeypatch, quick):
    monkeypatch.setenv("HTTPS_PROXY", site.origin)
    monkeypatch.setattr(Handler, "do_CONNECT", lambda self: (self.answer(), None)[1], raising=False)
    with pytest.raises(NotFetched):
        quick(pauses=()).fetch(["https://images.example/a.jpg"], 100)
    assert site.requests == [("CONNECT", "images.example:443")]
    with pytest.raises(DataError, match=r"10.0.0.1, which is not on the public internet"):
        quick(pauses=()).fetch(["https://10.0.0.1/a.jpg"], 100)
    assert len(site.requests) == 1


def test_a_name_that_nobody_knows_is_a_matter_of_the_network(quick, monkeypatch):
    def look_up(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with pytest.raises(NotFetched, match=r"the name nowhere.invalid is not known here .*; check the network"):
        quick(pauses=()).fetch(["https://nowhere.invalid/a.jpg"], 100)


# --- GRIT's files


def counting(image: str, answer: int, **changes) -> dict:
    """A row as GRIT released them."""
    row = {"question": "How many birds are there?", "answer": answer, "image": image, "width": 64, "height": 48}
    return row | {"bboxs": [[1.5, 2, 11, 12.25]], "dataset": "tallyqa", "split": "train"} | changes


def relation(image: str, **changes) -> dict:
    return (
        counting(image, 0) | {"question": "What is across from the truck?", "answer": "tv", "dataset": "vsr"} | changes
    )


ROWS = {
    "tallyqa_train_10.jsonl": [counting("VG_100K/1.jpg", 2), counting("VG_100K_2/2.jpg", 3)],
    "vsr_cot_train_10.jsonl": [relation("000000000003.jpg"), relation("000000000004.jpg", key_words=["tv"])],
    "tallyqa_val.jsonl": [counting("VG_100K_2/2.jpg", 3, split="val")],
    "vsr_val.jsonl": [relation("000000000004.jpg", split="val"), relation("000000000005.jpg", split="val")],
    "gqa_val.jsonl": [relation("images/6.jpg", dataset="gqa", split="val")],
}
IMAGES = {
    "tallyqa/VG_100K/1.jpg": "/vg/VG_100K/1.jpg",
    "tallyqa/VG_100K_2/2.jpg": "/vg/VG_100K_2/2.jpg",
    "vsr/000000000003.jpg": "/coco/train2017/000000000003.jpg",
    "vsr/000000000004.jpg": "/coco/val2017/000000000004.jpg",
    "vsr/000000000005.jpg": "/coco/val2017/000000000005.jpg",
    "gqa/images/6.jpg": "/vg/VG_100K_2/6.jpg",
}
TRAIN = list(IMAGES)[:4]


def lines(*rows: dict) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def hub_file(content: bytes, sent: int | None = None) -> Callable[[Handler], None]:
    """A file as the hub sends it; with `sent`, cut off after so many bytes."""
    headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X_Repo_Commit": COMMIT}

    def answer(handler: Handler) -> None:
        handler.reply(200, content[:sent], "text/plain", length=len(content), **headers)
        handler.close_connection = sent is not None

    return answer


def publish(site: Site, file: str, *rows: dict) -> None:
    for revision in ("main", COMMIT):
        site.files[f"{HUB}/{revision}/{file}"] = hub_file(lines(*rows))


@pytest.fixture
def online(monkeypatch, tmp_path) -> None:
    """The hub's client as it is with a network, with an empty cache and without a token."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)


@pytest.fixture
def world(site, tmp_path, monkeypatch, online) -> Site:
    """A server with all that is to be fetched, and a data folder that is still empty."""
    monkeypatch.setenv("GRIT_LITE_DATA", str(tmp_path / "data"))
    for file, rows in ROWS.items():
        publish(site, file, *rows)
    site.files |= {path: jpeg(seed) for seed, path in enumerate(IMAGES.values())}
    monkeypatch.setattr(fetch, "SOURCES", sources(site))
    return site


def sources(site: Site) -> Sources:
    return Sources(site.origin, f"{site.origin}/coco", f"{site.origin}/vg", frozenset({site.origin}))


@pytest.fixture
def fetched(quick, world) -> Callable[..., list[Outcome]]:
    def carry_out(*splits: str) -> list[Outcome]:
        return list(fetch_grit(plan_grit(splits or ["train"]), quick(world)))

    return carry_out


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "data" / "grit"


def files_in(folder: Path) -> list[str]:
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in paths if path != "lock")


def test_the_training_triplets_are_fetched_with_their_images_and_no_others(fetched, world, folder):
    assert [outcome.error for outcome in fetched()] == [None] * 4
    assert files_in(folder) == sorted(["manifest.jsonl", *list(ROWS)[:2], *TRAIN])
    for file in TRAIN:
        assert (folder / file).read_bytes() == world.files[IMAGES[file]]
    loaded = load("grit")
    assert [(row.dataset, row.answer, row.boxes) for row in loaded.triplets] == [
        ("tallyqa", "2", ()),
        ("tallyqa", "3", ()),
        ("vsr", "tv", ()),
        ("vsr", "tv", ()),
    ]
    assert loaded.bad_rows == []
    assert loaded.triplets[0].load_image().size == (64, 48)
    assert sorted(row.dataset for row in sample(loaded.triplets, 2, seed=0)) == ["tallyqa", "vsr"]


def test_the_rows_for_evaluation_keep_their_boxes(fetched, folder):
    fetched("val")
    loaded = load("grit:val")
    assert [row.dataset for row in loaded.triplets] == ["tallyqa", "vsr", "vsr", "gqa"]
    assert all(row.boxes for row in loaded.triplets)
    assert (folder / "gqa/images/6.jpg").is_file()


def test_an_image_of_several_rows_is_fetched_once(fetched, world):
    assert len(fetched("train", "val")) == len(IMAGES)
    assert sorted(world.got()).count("/vg/VG_100K_2/2.jpg") == 1


def test_boxes_of_training_rows_are_not_read_whatever_they_are(fetched, world):
    rows = [counting("VG_100K/1.jpg", 2, bboxs=[[0, 0, 1000, 1000]], width=9), counting("VG_100K_2/2.jpg", 3)]
    publish(world, "tallyqa_train_10.jsonl", *rows)
    fetched()
    assert load("grit").bad_rows == []


def test_the_manifest_says_what_each_file_is_and_where_it_came_from(fetched, world, folder):
    fetched()
    entries = {entry["file"]: entry for entry in map(json.loads, (folder / MANIFEST).read_text().splitlines())}
    assert entries["vsr/000000000004.jpg"] == {
        "file": "vsr/000000000004.jpg",
        "sha256": hashlib.sha256(world.files["/coco/val2017/000000000004.jpg"]).hexdigest(),
        "bytes": len(world.files["/coco/val2017/000000000004.jpg"]),
        "source": f"{world.origin}/coco/val2017/000000000004.jpg",
    }
    source = f"hf://datasets/{REPOSITORY}@{COMMIT}/tallyqa_train_10.jsonl"
    assert entries["tallyqa_train_10.jsonl"]["source"] == source
    assert len(entries) == 6


def test_a_second_fetch_asks_nobody_anything(fetched, world):
    fetched()
    world.requests.clear()
    assert fetched() == []
    plan = plan_grit(["train"])
    assert not plan.missing
    assert "Nothing to fetch: 6 files" in plan.describe()
    assert world.requests == []


def test_what_is_shown_before_a_fetch_is_what_it_fetches(world, folder, fetched):
    plan = plan_grit(["train"])
    images = sum(len(world.files[IMAGES[file]]) for file in TRAIN)
    assert (len(plan.annotations), len(plan.images), plan.image_bytes, plan.here) == (2, 4, images, 0)
    assert f"4 images, {images / 1000:.1f} kB, from 127.0.0.1" in plan.describe()
    assert not folder.exists()
    assert sum(outcome.bytes for outcome in fetched()) == images
    after = plan_grit(["train", "val"])
    assert (len(after.annotations), len(after.images), after.here) == (3, 2, 6)


def test_of_many_images_some_are_asked_for_their_size(world):
    publish(world, "tallyqa_train_10.jsonl", *[counting(f"VG_100K/{number}.jpg", 1) for number in range(100)])
    world.files |= {f"/vg/VG_100K/{number}.jpg": bytes(1000) for number in range(100)}
    plan = plan_grit(["train"])
    assert len([path for path in world.got("HEAD") if "VG_100K" in path]) < 40
    assert abs(plan.image_bytes - 102 * 1000) < 10_000
    assert "102 images, about 1" in plan.describe()


def test_sizes_that_a_host_does_not_say_are_not_invented(world):
    for path in IMAGES.values():
        world.files[path] = lambda handler: handler.reply(503)
    plan = plan_grit(["train"])
    assert plan.image_bytes is None
    assert "4 images, of a size that their hosts do not say" in plan.describe()


@pytest.mark.parametrize("at", [0, 1, 1000, -1])
def test_a_fetch_that_was_cut_off_goes_on_with_what_is_missing(fetched, world, folder, at):
    content, path = world.files[IMAGES[TRAIN[1]]], IMAGES[TRAIN[1]]
    world.files[path] = cut(content, at)
    outcomes = fetched()
    assert [outcome.error is None for outcome in outcomes] == [True, False, True, True]
    error = failure(plan_grit(["train"]), outcomes)
    assert isinstance(error, NotFetched)
    assert "tallyqa_train_10.jsonl:2: " in str(error)
    assert f"{world.origin}{path}" in str(error)
    assert files_in(folder) == sorted(["manifest.jsonl", *list(ROWS)[:2], *(TRAIN[:1] + TRAIN[2:])])
    [bad] = load("grit").bad_rows
    assert "image 'VG_100K_2/2.jpg' has not been fetched; run: grit-lite data fetch grit --split train" in bad.reason
    assert len(accept(load("grit"), "skip")) == 3
    world.files[path] = content
    world.requests.clear()
    fetched()
    assert world.got() == [path]
    assert load("grit").bad_rows == []


KILLED = """
import sys, huggingface_hub
from grit_lite.triplets.fetch import fetch_grit, plan_grit
from grit_lite.triplets.grit import Sources
origin = sys.argv[1]
sources = Sources(origin, f"{origin}/coco", f"{origin}/vg", frozenset({origin}))
for outcome in fetch_grit(plan_grit(["train"], sources)):
    print(outcome.image.file, flush=True)
"""


def test_a_fetch_that_is_killed_while_bytes_arrive_goes_on(fetched, world, folder, tmp_path):
    stuck, path = threading.Event(), IMAGES[TRAIN[2]]
    content = world.files[path]

    def half(handler: Handler) -> None:
        handler.reply(200, content[: len(content) // 2], length=len(content))
        if handler.command == "GET":
            handler.wfile.flush()
            stuck.set()
            time.sleep(5)

    world.files[path] = half
    environment = os.environ | {"HF_HUB_OFFLINE": "0", "HF_HUB_CACHE": str(tmp_path / "hub2")}
    child = subprocess.Popen([sys.executable, "-c", KILLED, world.origin], env=environment, stdout=subprocess.PIPE)
    assert stuck.wait(60)
    child.send_signal(signal.SIGKILL)
    assert child.communicate()[0].decode().split() == TRAIN[:2]
    assert [file for file in files_in(folder) if file in TRAIN] == sorted(TRAIN[:2])
    world.files[path] = content
    world.requests.clear()
    fetched()
    assert world.got()[-3:] == [path, "/coco/train2017/000000000004.jpg", IMAGES[TRAIN[3]]]
    assert not any(path in world.got() for path in (IMAGES[TRAIN[0]], IMAGES[TRAIN[1]]))
    assert load("grit").bad_rows == []


def test_a_file_that_changed_is_noticed_and_fetched_again(fetched, world, folder):
    fetched()
    (folder / TRAIN[0]).write_bytes(jpeg(99))
    (folder / TRAIN[1]).unlink()
    reasons = [row.reason for row in load("grit").bad_rows]
    assert reasons[0].startswith("image 'VG_100K/1.jpg' is no longer the one that was fetched; run: grit-lite data")
    assert reasons[1].startswith("image 'VG_100K_2/2.jpg' has not been fetched; ")
    world.requests.clear()
    fetched()
    assert world.got() == [IMAGES[TRAIN[0]], IMAGES[TRAIN[1]]]
    assert load("grit").bad_rows == []


def test_changed_rows_are_noticed_and_fetched_again_from_the_hubs_cache(fetched, folder):
    fetched()
    file = folder / "tallyqa_train_10.jsonl"
    before = file.read_bytes()
    file.write_bytes(before.replace(b"birds", b"nests"))
    with pytest.raises(NotFetched, match="grit-lite data fetch grit --split train"):
        load("grit")
    fetched()
    assert file.read_bytes() == before


def test_a_manifest_whose_last_line_was_cut_off_loses_that_line_only(fetched, world, folder):
    fetched()
    manifest = folder / MANIFEST
    manifest.write_bytes(manifest.read_bytes()[:-10])
    (folder / TRAIN[3]).write_bytes(b"damaged")
    world.requests.clear()
    fetched()
    assert world.got()[-1] == IMAGES[TRAIN[3]]
    assert len(world.got()) == 2  # train2017, where it is not, and val2017
    assert Manifest(folder).holds(TRAIN[3])
    assert load("grit").bad_rows == []


def test_an_image_that_was_put_there_by_hand_is_used_and_not_fetched(fetched, world, folder):
    del world.files[IMAGES[TRAIN[0]]]
    assert fetched()[0].error is not None
    (folder / TRAIN[0]).parent.mkdir(parents=True)
    (folder / TRAIN[0]).write_bytes(jpeg(7))
    assert not plan_grit(["train"]).missing
    assert load("grit").bad_rows == []


def test_what_is_wrong_with_an_image_is_listed_with_its_rows_and_the_rest_is_kept(fetched, world, folder):
    world.files[IMAGES[TRAIN[0]]] = lambda handler: handler.reply(200, b"<html>", "text/html")
    world.files[IMAGES[TRAIN[1]]] = b"<html>not said to be one</html>"
    world.files[IMAGES[TRAIN[2]]] = jpeg(0)[:900]  # whole for its host, and no whole image
    publish(
        world, "vsr_cot_train_10.jsonl", *ROWS["vsr_cot_train_10.jsonl"], relation("000000000003.jpg", question="?")
    )
    plan = plan_grit(["train"])
    outcomes = fetched()
    error = failure(plan, outcomes)
    assert isinstance(error, DataError)
    for part in (
        "3 of 4 images could not be fetched:",
        "tallyqa_train_10.jsonl:1: ",
        "the answer is a page (text/html), not an image",
        "tallyqa_train_10.jsonl:2: ",
        "it is not a JPEG, PNG or WebP image",
        "vsr_cot_train_10.jsonl:1, vsr_cot_train_10.jsonl:3: ",
        "the JPEG is truncated or damaged",
    ):
        assert part in str(error)
    assert [file for file in files_in(folder) if file in TRAIN] == [TRAIN[3]]


def test_an_image_with_a_forged_header_is_not_kept(fetched, world, folder):
    huge = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(huge, "PNG")
    world.files[IMAGES[TRAIN[0]]] = huge.getvalue()
    assert "400,000,000 pixels; the limit is 64,000,000" in str(fetched()[0].error)
    assert not (folder / TRAIN[0]).exists()


def test_an_image_that_is_nowhere_is_reported_with_both_addresses(fetched, world):
    del world.files["/coco/val2017/000000000004.jpg"]
    error = fetched()[3].error
    assert isinstance(error, DataError)
    assert "/coco/train2017/000000000004.jpg: HTTP 404" in str(error)
    assert "/coco/val2017/000000000004.jpg: HTTP 404" in str(error)


@pytest.mark.parametrize("name", ["../../secret.jpg", "/etc/passwd", "https://example.org/a.jpg", "a\\b.jpg", 7, None])
def test_a_row_whose_image_leads_elsewhere_is_a_bad_row(fetched, world, folder, name):
    publish(world, "tallyqa_train_10.jsonl", counting(name, 1), counting("VG_100K_2/2.jpg", 3))
    plan = plan_grit(["train"])
    assert [(row.file, row.line) for row in plan.bad_rows] == [("tallyqa_train_10.jsonl", 1)]
    assert len(fetched()) == 3
    assert isinstance(failure(plan, []), DataError)
    assert [row.line for row in load("grit").bad_rows] == [1]


@pytest.mark.parametrize(
    ("image", "paths"),
    [
        ("VG_100K/a b.jpg", ["/vg/VG_100K/a%20b.jpg"]),
        ("val2014/COCO_val2014_000000000001.jpg", ["/coco/val2014/COCO_val2014_000000000001.jpg"]),
        ("7.jpg", ["/vg/VG_100K/7.jpg", "/vg/VG_100K_2/7.jpg"]),
        (".", ["/vg/VG_100K/", "/vg/VG_100K_2/"]),
    ],
)
def test_where_an_image_is_asked_for(image, paths):
    found = Sources(coco="https://h/coco", visual_genome="https://h/vg").addresses("tallyqa", image)
    assert list(found) == [f"https://h{path}" for path in paths]


def test_the_hosts_are_asked_by_https():
    for image in ("VG_100K/1.jpg", "000000000001.jpg"):
        assert all(address.startswith("https://") for address in Sources().addresses("vsr", image))


def test_two_processes_do_not_fetch_into_one_folder(quick, world):
    one = fetch_grit(plan_grit(["train"]), quick(world))
    next(one)
    with pytest.raises(UsageError, match="Another process is fetching into"):
        next(fetch_grit(plan_grit(["train"]), quick(world)))
    one.close()
    assert len(list(fetch_grit(plan_grit(["train"]), quick(world)))) == 3


def test_a_folder_that_cannot_be_written_to_is_one_clear_message(fetched, tmp_path):
    (tmp_path / "data").write_text("a file")
    with pytest.raises(NotFetched, match=r"cannot be written to .*GRIT_LITE_DATA"):
        fetched()


FULL = """
import resource, sys
from pathlib import Path
from grit_lite.triplets.manifest import Manifest
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
Manifest(Path(sys.argv[1])).add("a/b.jpg", bytes(5000), "somewhere")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no limit on the size of files to set")
def test_a_file_that_cannot_be_written_whole_is_not_there_at_all(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True)
    assert "b.jpg cannot be written (File too large). Free disk space, " in done.stderr
    assert not (tmp_path / "a/b.jpg").exists()
    manifest = Manifest(tmp_path)
    assert not manifest.notes("a/b.jpg")
    manifest.add("a/b.jpg", bytes(5000), "somewhere")
    assert Manifest(tmp_path).holds("a/b.jpg")
    assert files_in(tmp_path) == ["a/b.jpg", MANIFEST]


# --- the hub


def test_data_that_was_not_fetched_names_the_command_that_fetches(world):
    for source, split in (("grit", "train"), ("grit:train", "train"), ("grit:val", "val")):
        with pytest.raises(NotFetched, match=rf"are not on this machine.*: grit-lite data fetch grit --split {split}$"):
            load(source)
    with pytest.raises(DataError, match="no split 'test'; give grit:train or grit:val"):
        load("grit:test")


def test_offline_a_fetch_says_so(world, fetched, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(NotFetched, match=f"'{REPOSITORY}' is not on this machine, and the hub cannot be reached"):
        plan_grit(["train"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    world.files[IMAGES[TRAIN[0]]] = cut(jpeg(0), 5)
    fetched()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    world.requests.clear()
    with pytest.raises(NotFetched, match=r"Images are missing in .*, and HF_HUB_OFFLINE is set. Unset it"):
        plan_grit(["train"])
    assert world.requests == []


@pytest.mark.parametrize(
    ("status", "code"),
    [(403, "GatedRepo"), (401, "GatedRepo"), (401, "RepoNotFound"), (401, None), (404, "RepoNotFound")],
)
def test_a_hub_that_does_not_open_the_data_says_how_to_log_in(world, status, code):
    headers = {"X_Error_Code": code} if code else {}
    for file in ROWS:
        world.files[f"{HUB}/main/{file}"] = lambda handler: handler.reply(status, b"no", "text/plain", **headers)
    message = (
        rf"has no dataset '{REPOSITORY}', or does not open it to you .*hf auth login, or a valid token in HF_TOKEN"
    )
    with pytest.raises(NotFetched, match=message) as raised:
        plan_grit(["train"])
    assert "\n" not in str(raised.value)


def test_any_other_dataset_that_the_hub_does_not_open_is_the_same_message_and_exit_code(site, tmp_path):
    site.files["/datasets/nobody/gated/resolve/main/README.md"] = lambda handler: handler.reply(
        403, b"no", "text/plain", X_Error_Code="GatedRepo"
    )
    hub = {"HF_ENDPOINT": site.origin, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0"}
    command = [sys.executable, "-c", "from grit_lite.cli import main; main()", "data", "check", "hf:nobody/gated:test"]
    done = subprocess.run(command, env=os.environ | hub, capture_output=True, text=True)
    assert done.returncode == 4, done.stderr
    message = done.stderr.splitlines()[-1]
    assert "The hub has no dataset 'nobody/gated', or does not open it to you" in message
    assert "hf auth login, or a valid token in HF_TOKEN" in message
    assert "Traceback" not in done.stderr


def test_a_file_that_left_the_hub_is_a_matter_of_the_data(world):
    for path in [path for path in world.files if path.startswith(HUB)]:
        world.files[path] = lambda handler: handler.reply(404, b"no", X_Error_Code="EntryNotFound")
    with pytest.raises(DataError, match=f"{REPOSITORY} .*no longer has tallyqa_train_10.jsonl"):
        plan_grit(["train"])


def test_a_download_from_the_hub_that_was_cut_off_is_begun_again(world, folder, fetched):
    content = lines(*ROWS["tallyqa_train_10.jsonl"])
    path = f"{HUB}/{COMMIT}/tallyqa_train_10.jsonl"
    world.files[path] = first(hub_file(content, sent=40), hub_file(content))
    fetched()
    assert (folder / "tallyqa_train_10.jsonl").read_bytes() == content
    assert world.got().count(path) == 2


# --- the command


@pytest.fixture
def cli(monkeypatch, capsys):
    """Runs `grit-lite data fetch …` in this process; returns (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["grit-lite", "data", "fetch", *arguments])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_the_command_shows_the_sizes_and_asks_nothing_without_a_terminal(cli, world, folder):
    code, out, err = cli("grit")
    assert (code, out) == (2, "")
    assert err.index("4 images, ") < err.index("Say --yes to fetch without being asked")
    assert not folder.exists()


@pytest.mark.parametrize(("answer", "files"), [("y\n", 4), ("n\n", 0), ("\n", 0)])
def test_the_command_asks_on_a_terminal(cli, world, folder, monkeypatch, answer, files):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    code, _, err = cli("grit")
    assert code == 0
    assert err.index("4 images, ") < err.index("Fetch them?")
    assert len([file for file in TRAIN if (folder / file).is_file()]) == files


def test_the_command_fetches_and_says_where(cli, world, folder):
    code, out, err = cli("grit", "--split", "all", "--yes")
    assert (code, out) == (0, f"All files are in {folder}.\n")
    assert "6 images" in err
    assert "Fetching images" in err
    assert load("grit:val").bad_rows == []
    code, _, err = cli("grit")
    assert (code, "Nothing to fetch" in err) == (0, True)


def test_the_command_speaks_json_and_lists_what_failed(cli, world, folder):
    del world.files[IMAGES[TRAIN[0]]]
    code, out, err = cli("grit", "--yes", "--json")
    assert code == 3
    said = json.loads(out)
    assert (said["folder"], said["here_before"], said["fetched"]) == (str(folder), 0, 5)
    [failed] = said["failed"]
    assert failed["rows"] == ["tallyqa_train_10.jsonl:1"]
    assert failed["addresses"] == [f"{world.origin}{IMAGES[TRAIN[0]]}"]
    assert "HTTP 404" in failed["reason"]
    assert "1 of 4 images could not be fetched" in err
    assert cli("grit", "--json")[0] == 2


def test_the_command_knows_nothing_else_to_fetch(cli):
    code, _, err = cli("coco")
    assert code == 2
    assert "only 'grit'" in err


def test_the_command_can_be_stopped(cli, world, folder, monkeypatch):
    def interrupt(handler: Handler) -> None:
        if handler.command == "GET":
            signal.raise_signal(signal.SIGINT)
        handler.reply(200, b"late")

    world.files[IMAGES[TRAIN[1]]] = interrupt
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    code, _, err = cli("grit", "--yes")
    signal.signal(signal.SIGINT, before)
    assert code == 130
    assert "What has arrived is kept; the same command goes on" in err
    assert [file for file in files_in(folder) if file in TRAIN] == TRAIN[:1]


def test_training_on_what_was_not_fetched_stops_before_there_is_a_run_folder(world, tmp_path, monkeypatch, capsys):
    arguments = ["train", "--recipe", "tiny", "--set", "data=grit", "--output", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["grit-lite", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 4
    assert "grit-lite data fetch grit --split train" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
