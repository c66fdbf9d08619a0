"""An OpenAI-style endpoint on this machine, which says what a test wants it to say and remembers what it was asked."""

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from grit_lite.judge import RUBRICS, WHICH_PICTURE, Item, Pictures

KEY = "sk-a-key-that-nobody-may-see"
MODEL = "a-judge-2026-01-01"  # what the server calls the model that is asked for as "a-judge"
CANARIES = {canary.item: canary.lowest for rubric in (*RUBRICS.values(), WHICH_PICTURE) for canary in rubric.canaries}


class Response(Exception):
    """Any other response than a chat completion: raised by the function that plays the judge.

    Args:
        drips: the body is sent a byte at a time, a hundred a second at most.
    """

    def __init__(
        self, status: int, body: object = "", headers: dict[str, str] | None = None, *, drips: bool = False
    ) -> None:
        self.status, self.headers, self.drips = status, headers or {}, drips
        self.body = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else json.dumps(body)


class JudgeServer(ThreadingHTTPServer):
    """A judge that is right about canaries.

    Attributes:
        say: of an answer that is no canary, the text of the reply; or raises a `Response`.
        refuses: options that it answers with 400.
        asked: every answer that is no canary, in the order of arrival; `bodies` every request.
    """

    daemon_threads = True

    def __init__(self, say: Callable[[Any], str]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.address = f"http://127.0.0.1:{self.server_port}/v1"
        self.say = say
        self.say_to_canary: Callable[[Any], str] = right
        self.refuses: set[str] = set()
        self.model = MODEL
        self.finish_reason = "stop"
        self.key: str | None = None
        self.asked: list[Item | Pictures] = []
        self.bodies: list[dict] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    def handle_error(self, *_: object) -> None:
        """A client that hung up is what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    server: JudgeServer

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        try:
            text = self.reply(body)
        except Response as response:
            pieces = [bytes([byte]) for byte in response.body] if response.drips else None
            return self.send(response.status, response.body, response.headers, pieces)
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": self.server.finish_reason}
        return self.send(200, json.dumps({"model": self.server.model, "choices": [choice]}), {})

    def reply(self, body: dict) -> str:
        server = self.server
        if self.path.partition("?")[0] != "/v1/chat/completions":
            raise Response(404, {"error": {"message": "no such page"}})
        if server.key is not None and self.headers["Authorization"] != f"Bearer {server.key}":
            sent = str(self.headers["Authorization"])
            raise Response(401, {"error": {"message": f"Incorrect API key provided: {sent[:16]}***{sent[-4:]}"}})
        if refused := server.refuses & set(body):
            raise Response(400, {"error": {"message": f"Unsupported parameter: {refused}"}})
        item = item_of(body)
        with server.lock:
            server.bodies.append(body)
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
            if item not in CANARIES:
                server.asked.append(item)
        try:
            return server.say_to_canary(item) if item in CANARIES else server.say(item)
        finally:
            with server.lock:
                server.at_once -= 1

    def send(self, status: int, body: str | bytes, headers: dict[str, str], pieces: list[bytes] | None = None) -> None:
        content = body if isinstance(body, bytes) else body.encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        for piece in pieces or [content]:
            self.wfile.write(piece)
            time.sleep(0.01 if pieces else 0)


def item_of(body: dict) -> Item | Pictures:
    """What a request asks about, read as the judge's model would read it."""
    content = body["messages"][-1]["content"]
    if isinstance(content, list):
        return pictures_of(content)
    data = json.loads(content.partition("\n")[2])
    return Item(data["question"], data["standard_answer"], data["answer"], data.get("context", ""))


def pictures_of(parts: list[dict]) -> Pictures:
    """The files that the data URIs hold, by what is written above each, and the text."""
    kinds = [part["type"] for part in parts]
    assert kinds == ["text", "image_url", "text", "image_url", "text"], kinds
    assert [parts[0]["text"], parts[2]["text"]] == ["Picture A:", "Picture B:"]
    uris = [part["image_url"]["url"].partition(",") for part in parts if part["type"] == "image_url"]
    assert {start for start, _, _ in uris} == {"data:image/jpeg;base64"}
    first, second = (base64.b64decode(content, validate=True) for _, _, content in uris)
    return Pictures(first, second, json.loads(parts[-1]["text"].partition("\n")[2])["text"])


def right(canary: Item | Pictures) -> str:
    """What a judge says that is right about a canary."""
    score = CANARIES[canary]
    return choice("BA"[score]) if isinstance(canary, Pictures) else verdict(score)


def choice(letter: str) -> str:
    return json.dumps({"reason": "It speaks of what is in the box.", "picture": letter})


def verdict(score: object, reason: str = "It says the same.") -> str:
    return json.dumps({"reason": reason, "score": score})


@contextmanager
def served(say: Callable[[Any], str] = lambda item: verdict(1)) -> Iterator[JudgeServer]:
    with JudgeServer(say) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server
        server.shutdown()
