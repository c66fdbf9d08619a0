"""A hub on this machine: the endpoints that huggingface_hub needs to publish one repository, and to fetch it again.

One of models, or of a dataset to fetch; `refuse_reading` is the status and the code of every answer to who fetches."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

TOKEN = "hf_a_token_that_may_write"
COMMIT = "1" * 40
_OID = {"oid": "2" * 40}


class Hub(ThreadingHTTPServer):
    """`files` are those of the last commit, by path; `refuse_creation` is the status that answers a new repository."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.refuse_creation: int | None = None
        self.refuse_reading: tuple[int, str] | None = None
        self.repositories: list[dict] = []
        self.commits: list[str] = []
        self.large: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if self.server.refuse_reading and path != "/api/whoami-v2":
            status, code = self.server.refuse_reading
            return self.answer(status, {"error": "no"}, {"X-Error-Code": code})
        if "/resolve/" in path:
            revision, _, name = path.partition("/resolve/")[2].partition("/")
            return self.send_file(unquote(name), COMMIT if revision == "main" else revision)
        if "/tree/" in path:
            return self.answer(200, [{"type": "file", "path": n, "size": len(c)} | _OID for n, c in self.files()])
        if path.startswith(("/api/models/", "/api/datasets/")) and self.server.files:
            return self.answer(
                200, {"id": "any", "sha": COMMIT, "siblings": [{"rfilename": n} for n, _ in self.files()]}
            )
        if path != "/api/whoami-v2":
            return self.answer(404, {"error": "no such page"})
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "Invalid credentials in Authorization header"})
        return self.answer(200, {"type": "user", "name": "ada"})

    do_HEAD = do_GET

    def files(self) -> list[tuple[str, bytes]]:
        return list(self.server.files.items())

    def send_file(self, name: str, commit: str) -> None:
        if name not in self.server.files:
            return self.answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        content = self.server.files[name]
        etag = hashlib.sha256(content).hexdigest()
        return self.answer(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": commit})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            return self.create(json.loads(body))
        if "/preupload/" in self.path:
            return self.choose_ways(json.loads(body))
        if self.path.endswith(".git/info/lfs/objects/batch"):
            return self.offer_places(json.loads(body))
        if "/commit/" in self.path:
            return self.commit(self.path.split("/")[3:5], [json.loads(line) for line in body.splitlines()])
        return self.answer(200, {})  # the check of a card's metadata

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.large[hashlib.sha256(content).hexdigest()] = content
        self.answer(200, {})

    def create(self, wish: dict) -> None:
        if self.server.refuse_creation:
            return self.answer(self.server.refuse_creation, {"error": "You don't have the rights to create a model"})
        self.server.repositories.append(wish)
        return self.answer(200, {"url": f"{self.server.address}/{wish['organization']}/{wish['name']}"})

    def choose_ways(self, wish: dict) -> None:
        ways = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for file in wish["files"]
        ]
        self.answer(200, {"files": ways})

    def offer_places(self, wish: dict) -> None:
        places = [
            {**entry, "actions": {"upload": {"href": f"{self.server.address}/put/{entry['oid']}"}}}
            for entry in wish["objects"]
        ]
        self.answer(200, {"transfer": "basic", "objects": places})

    def commit(self, repository: list[str], lines: list[dict]) -> None:
        self.server.files = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.server.commits.append(value["summary"])
            elif line["key"] == "lfsFile":
                self.server.files[value["path"]] = self.server.large[value["oid"]]
            else:
                self.server.files[value["path"]] = base64.b64decode(value["content"])
        url = f"{self.server.address}/{'/'.join(repository)}/commit/{COMMIT}"
        self.answer(200, {"success": True, "commitOid": COMMIT, "commitUrl": url, "hookOutput": ""})

    def answer(self, status: int, value: dict | list | bytes, headers: dict[str, str] | None = None) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def running() -> Iterator[Hub]:
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
