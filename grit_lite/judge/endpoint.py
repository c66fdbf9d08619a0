"""A judge behind an OpenAI-style endpoint: chat completions, any server, one POST for one answer.

It is httpx and not the openai package: httpx is here already, one POST is all there is to it, and the retries, the
deadline and the budget have to be one loop. What has no verdict is an abstention, and counted; it is never a zero.
"""

import asyncio
import contextlib
import email.utils
import functools
import hashlib
import json
import os
import random
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple, NoReturn, TypeVar

import httpx

from grit_lite import __version__
from grit_lite.answer import plain
from grit_lite.errors import JudgeError, RecipeError
from grit_lite.judge.cache import Cache, cache_file
from grit_lite.judge.replies import READER
from grit_lite.judge.rubrics import RIGHT_OR_WRONG, AnyRubric, Item

T = TypeVar("T")

CONCURRENT = 8  # requests at the same time
SHARE = 0.01  # of answers, that may be without a verdict
SPARED = 3  # answers of all steps of a run without a verdict that end nothing, whatever their share
REQUESTS = 10  # for one answer
READINGS = 3  # replies for one answer that cannot be read
LONGEST_PAUSE = 8.0  # seconds, unless the endpoint asks for more
MAX_BYTES = 2**20  # of a response
_PASSING = {408, 409, 425, 429}  # and all from 500 on
_UNFIT = {400, 422, 501}  # something in the request that it does not take
_NOT_THERE = "See that it runs, and that OPENAI_BASE_URL is its address, ending in /v1"
# What a server may refuse: gpt-5 and its like take no temperature, small servers no schema. Tried in this order.
_FORMS = (("response_format", "temperature"), ("temperature",), ("response_format",), ())


class Reply(NamedTuple):
    """What a model said, and the model's own name for itself."""

    text: str
    model: str


class Verdict(NamedTuple):
    """A score, or None; and the model's own name for itself."""

    score: int | None
    model: str


@dataclass
class _Batch:
    """Answers that are judged together.

    Attributes:
        total: of them, with those that are known already.
        before: answers that the judge was asked for earlier.
        more_follow: whether they are one step of many, to be counted together with the others.
        missing: how many have no verdict, so far.
    """

    total: int
    before: int
    more_follow: bool
    missing: int = 0


class _Passing(Exception):
    """A failure that may not happen again; `pause` is what the endpoint asked for, in seconds."""

    def __init__(self, said: str, pause: float | None = None) -> None:
        super().__init__(said)
        self.pause = pause


class _Refused(Exception):
    """The endpoint does not take this request."""

    def __init__(self, said: str, status: int) -> None:
        super().__init__(said)
        self.status = status


class Endpoint:
    """A judge that is asked over HTTP, from several threads at the same time.

    Args:
        model: its name at the endpoint.
        address: of the API, with its version: "http://127.0.0.1:8000/v1".
        key: sent as a bearer token; a local server needs none. It is neither written nor shown anywhere.
        budget: requests that may be sent, or None.
        seconds: for one answer, with all its requests and pauses; one request has half of them.
        pause: seconds before the second request for an answer, doubled for each further one.

    Attributes:
        counts: of answers: asked, cached, abstained (its replies state no score) and failed; and of requests.

    Once it has raised a JudgeError it does so for everything that is asked of it.
    """

    def __init__(
        self,
        model: str,
        address: str,
        key: str = "",
        *,
        cache: Cache,
        budget: int | None = None,
        seconds: float = 60.0,
        pause: float = 0.5,
    ) -> None:
        self.model, self.cache, self.budget, self.seconds, self.pause = model, cache, budget, seconds, pause
        url = httpx.URL(address)
        self.address = f"{url.scheme}://{url.netloc.decode()}{url.path.rstrip('/')}"  # and neither user nor query
        self._url = httpx.URL(f"{self.address}/chat/completions", params=url.params)
        self._client = _client(url, key)
        self._loop = _loop()
        weakref.finalize(self, _close, self._client, self._loop).atexit = False
        self._secrets = [secret for secret in (key, url.password) if secret]
        self.counts: Counter[str] = Counter(asked=0, cached=0, abstained=0, failed=0, requests=0)
        self._answers_as: dict[str, str] = {}  # by rubric: the model's own name, once it has passed the canaries
        self._prompts: dict[str, str] = {}  # by rubric: its digest
        self._names: set[str] = set()
        self._form = _FORMS[0]
        self._has_answered = False
        self._last_failure = ""
        self._end: JudgeError | None = None
        self._decided: dict[Item, float | None] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._jitter = random.Random()

    # what rewards and evaluation ask

    def __call__(self, question: str, gold: str, predicted: str) -> str | None:
        """The reply to one answer, in the form that the rewards read; None if the judge abstains.

        Raises: as `rate`.
        """
        item = Item(question, gold, predicted)
        score = self._decided[item] if item in self._decided else self.rate([item], more_follow=True)[0]
        return None if score is None else reply(score)

    def ask_ahead(self, items: Sequence[Item], *, more_follow: bool = False) -> None:
        """Have answers judged together that will be asked for one by one; otherwise as `rate`."""
        self._decided = dict(zip(items, self.rate(items, more_follow=more_follow), strict=True))

    def rate(
        self, items: Sequence[Any], rubric: AnyRubric = RIGHT_OR_WRONG, *, more_follow: bool = False
    ) -> list[float | None]:
        """The score of each answer, in the rubric's range; None where there is no verdict.

        At most `CONCURRENT` answers at the same time, each for `seconds` at most.

        Args:
            more_follow: whether these are one step of many. Otherwise they are all that a number will rest on, and may
                be without a verdict for one of them, or for `SHARE`. A step may be for half of them, and all steps so
                far together for `SPARED`, or for `SHARE`.

        Raises:
            JudgeError: a canary is judged wrong; too many answers have no verdict; the budget is spent; the key is
                refused; or the cache cannot be used. What was judged is kept.
        """
        if not items:
            return []
        self.prove(rubric)
        found = {item: self.cache.get(self._key_of(item, rubric)) for item in dict.fromkeys(items)}
        batch = _Batch(len(found), self.counts["asked"] + self.counts["cached"], more_follow)
        unknown = [item for item, score in found.items() if score is None]
        self.counts["cached"] += len(found) - len(unknown)
        found |= zip(unknown, self._together(unknown, rubric, batch), strict=True)
        return [found[item] for item in items]

    def prove(self, rubric: AnyRubric = RIGHT_OR_WRONG) -> None:
        """Have the canaries of a rubric judged, once.

        Raises:
            JudgeError: one is judged wrong, or the endpoint does not answer.
        """
        if rubric.name in self._answers_as:
            return
        items = [canary.item for canary in rubric.canaries]
        self._settle_form(items[0], rubric)
        replies = self._in_threads(lambda item: self._canary(item, rubric), items)
        wrong = [
            rubric.complaint(canary, score)
            for canary, (score, _) in zip(rubric.canaries, replies, strict=True)
            if score is None or not canary.lowest <= score <= canary.highest
        ]
        if wrong:
            raise self._ended(
                f"The judge {self.model} at {self.address} is wrong where right and wrong are plain, so it is not "
                f"believed (rubric {rubric.name}):\n" + "\n".join(wrong) + f"\n{rubric.advice}"
            )
        self._answers_as[rubric.name], self._prompts[rubric.name] = replies[0].model, rubric.digest

    def facts(self) -> dict[str, Any]:
        """Who judged, by what, and how often; for run.json and summaries."""
        return {
            "judge": self.model,
            "address": self.address,
            "model": sorted({*self._names, *self._answers_as.values()}),
            "prompts": dict(sorted(self._prompts.items())),
            "sent_with": list(self._form),
            **self.counts,
            **({"last_failure": self._last_failure} if self._last_failure else {}),
        }

    # canaries

    def _settle_form(self, item: Any, rubric: AnyRubric) -> None:
        """Find what the server takes of a schema and a temperature."""
        for self._form in _FORMS:
            try:
                self._patiently(item, rubric, time.monotonic() + self.seconds)
                return
            except _Refused as refused:
                if refused.status not in _UNFIT or self._form == _FORMS[-1]:
                    raise self._cannot_be_asked(refused, rubric) from refused
            except _Passing as failure:
                raise self._cannot_be_asked(failure) from failure

    def _canary(self, item: Any, rubric: AnyRubric) -> Verdict:
        try:
            return self._patiently(item, rubric, time.monotonic() + self.seconds)
        except (_Refused, _Passing) as failure:
            raise self._cannot_be_asked(failure) from failure

    def _cannot_be_asked(self, failure: Exception, rubric: AnyRubric | None = None) -> JudgeError:
        key = "Set OPENAI_API_KEY to a key of this endpoint"
        advice = {
            401: key,
            402: "Pay for it, or name another",
            403: key,
            404: f"It has no model {self.model}, or OPENAI_BASE_URL is not its address, which ends in /v1",
            **dict.fromkeys(_UNFIT, rubric.if_refused if rubric else _NOT_THERE),
        }.get(getattr(failure, "status", 0), _NOT_THERE)
        return self._ended(f"The judge {self.model} at {self.address} cannot be asked: {failure}. {advice}.")

    def _ended(self, message: str) -> JudgeError:
        """The error to raise, now and whenever something is asked again: the first one that there was."""
        self._end = self._end or JudgeError(message)
        self._over.set()  # who waits to try again does not
        return self._end

    # one answer after another

    def _together(self, items: Sequence[Any], rubric: AnyRubric, batch: _Batch) -> list[float | None]:
        return self._in_threads(lambda item: self._decide(item, rubric, batch), items) if items else []

    def _in_threads(self, work: Callable[[Any], T], items: Sequence[Any]) -> list[T]:
        """`work` on each item; one that raises ends all."""
        pool = ThreadPoolExecutor(min(CONCURRENT, len(items)), thread_name_prefix="judge")
        try:
            return list(pool.map(work, items))
        except BaseException:
            self._over.set()
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def _decide(self, item: Any, rubric: AnyRubric, batch: _Batch) -> float | None:
        """The score of an answer, cached; None if there is no verdict, which is counted."""
        if self._end is not None:
            raise self._end
        try:
            score, name = self._patiently(item, rubric, time.monotonic() + self.seconds)
        except (_Passing, _Refused) as failure:
            return self._without_verdict("failed", str(failure), batch)
        if score is None:
            return self._without_verdict("abstained", f"{READINGS} replies that state no score", batch)
        self.cache.put(self._key_of(item, rubric), score)
        with self._lock:
            self.counts["asked"] += 1
            self._names.add(name)
        return float(score)

    def _without_verdict(self, outcome: str, said: str, batch: _Batch) -> None:
        with self._lock:
            self.counts["asked"] += 1
            self.counts[outcome] += 1
            batch.missing += 1
            self._last_failure = said
            self._require_few_failures(batch)

    def _require_few_failures(self, batch: _Batch) -> None:
        """All limits are of what the answers will be once the batch is done: what passes them cannot come back."""
        if too_many := self._too_many(batch):
            raise self._ended(
                f"The judge {self.model} at {self.address} gave no verdict on {too_many} ({self.counts['failed']} "
                f"failed, {self.counts['abstained']} with replies that state no score; the last: {self._last_failure})."
                f" Where more than {SHARE:.0%} are missing, nothing that rests on the others can be believed. See that "
                "it runs and keeps up, or name another judge. What it has judged is kept and is not asked again."
            )

    def _too_many(self, batch: _Batch) -> str | None:
        """Which part of which answers is missing, where it is too large."""
        of_batch = f"{batch.missing} of {batch.total} answers"
        if not batch.more_follow:
            return of_batch if batch.missing > max(1, SHARE * batch.total) else None
        if batch.missing > max(1, batch.total / 2):
            return f"{of_batch} of one step"
        missing, total = self.counts["abstained"] + self.counts["failed"], batch.before + batch.total
        return f"{missing} of {total} answers so far" if missing > max(SPARED, SHARE * total) else None

    def _patiently(self, item: Any, rubric: AnyRubric, end: float) -> Verdict:
        """What comes of an answer by the time `end`; its score is None after three replies that cannot be read.

        Raises:
            _Passing, _Refused: there is no reply.
        """
        unreadable = 0
        for attempt in range(REQUESTS):
            try:
                text, model = self._request(item, rubric, end)
            except _Passing as failure:
                self._wait(failure, attempt, end)
                continue
            score = rubric.read(text)
            unreadable += score is None
            if score is not None or unreadable == READINGS:
                return Verdict(score, model)
        raise _Passing(f"{REQUESTS} requests brought no score")

    def _wait(self, failure: _Passing, attempt: int, end: float) -> None:
        """Wait for the next request, or raise the failure again where there will be none."""
        backoff = min(LONGEST_PAUSE, self.pause * 2**attempt) * self._jitter.uniform(0.5, 1.0)
        pause = backoff if failure.pause is None else failure.pause
        is_last = attempt == REQUESTS - 1 or time.monotonic() + pause >= end
        if is_last or self._over.wait(pause):
            raise failure

    # one request

    def _request(self, item: Any, rubric: AnyRubric, end: float) -> Reply:
        self._spend()
        try:
            status, headers, content = self._post(self._body(item, rubric), end)
        except httpx.HTTPError as error:
            said = self._safe(str(error)) or type(error).__name__
            if isinstance(error, httpx.ConnectError) and not self._has_answered:
                raise _Refused(said, status=0) from error  # a wrong address, or nobody there: waiting helps neither
            raise _Passing(said) from error
        self._has_answered = True
        if status != httpx.codes.OK:
            self._raise_for(status, headers, content)
        return self._read_completion(content)

    def _spend(self) -> None:
        with self._lock:
            if self.budget is not None and self.counts["requests"] >= self.budget:
                raise self._ended(
                    f"The budget of {self.budget} requests to the judge (judge_budget) is spent. What it has judged is "
                    "kept: the same command goes on from there with a budget of its own."
                )
            self.counts["requests"] += 1

    def _body(self, item: Any, rubric: AnyRubric) -> dict[str, Any]:
        options = {"response_format": rubric.response_format, "temperature": 0}
        chosen = {name: options[name] for name in self._form}
        return {"model": self.model, "messages": rubric.messages(item), **chosen}

    def _post(self, body: dict[str, Any], end: float) -> tuple[int, httpx.Headers, bytes]:
        """Status, headers and body of the response, within half of `seconds` from the first look-up of a name on."""
        limit = max(0.001, min(end - time.monotonic(), self.seconds / 2))
        return asyncio.run_coroutine_threadsafe(_within(limit, self._exchange(body)), self._loop).result()

    async def _exchange(self, body: dict[str, Any]) -> tuple[int, httpx.Headers, bytes]:
        content = bytearray()
        async with self._client.stream("POST", self._url, json=body, timeout=None) as response:
            async for piece in response.aiter_raw():
                content += piece
                if len(content) > MAX_BYTES:
                    raise httpx.ReadError(f"the response has more than {MAX_BYTES} bytes")
            return response.status_code, response.headers, bytes(content)

    def _raise_for(self, status: int, headers: httpx.Headers, content: bytes) -> NoReturn:
        if status in {401, 403}:  # whose message may quote the key
            said = f"it answers {status}, and does not take {'the' if self._secrets else 'requests without a'} key"
        else:
            said = f"it answers {status}: {self._safe(_message(content))}"
        if status in {401, 402} or (status == 429 and b"insufficient_quota" in content):
            raise self._cannot_be_asked(_Refused(said, status))
        if status in _PASSING or (status >= 500 and status != 501):
            raise _Passing(said, pause_asked_for(headers.get("retry-after", ""), datetime.now(UTC)))
        raise _Refused(said, status)

    def _read_completion(self, content: bytes) -> Reply:
        try:
            body = json.loads(content)
            choice = body["choices"][0]
            text, is_cut = choice["message"]["content"], choice.get("finish_reason") == "length"
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
            raise _Passing("its response is not a chat completion") from error
        model = body.get("model")
        name = self._safe(model) if isinstance(model, str) else self.model
        return Reply(text if isinstance(text, str) and not is_cut else "", name)

    def _safe(self, text: str) -> str:
        """What a server says, fit to be shown and written: short, without escapes, and without the key."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return " ".join(plain(text).split())[:200]

    def _key_of(self, item: Any, rubric: AnyRubric) -> str:
        """Of everything that decides a verdict, the query of the address and the model's name of today included."""
        judge = [self.address, str(self._url.params), self.model, self._answers_as[rubric.name]]
        return hashlib.sha256(json.dumps([*judge, rubric.digest, READER, *rubric.identity(item)]).encode()).hexdigest()


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """Where all requests of this process wait for their responses, in a thread of its own.

    Only there can a request be ended in whatever it waits for: what httpx limits in a thread is each wait, and a server
    that sends a byte of a header now and then makes them many.
    """
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="judge requests", daemon=True).start()
    return loop


async def _within(seconds: float, work: Coroutine[Any, Any, T]) -> T:
    try:
        async with asyncio.timeout(seconds):
            return await work
    except TimeoutError as error:
        raise httpx.ReadTimeout(f"no whole response in {seconds:.1f} s") from error


def _client(url: httpx.URL, key: str) -> httpx.AsyncClient:
    headers = {"User-Agent": f"grit-lite/{__version__}", "Accept-Encoding": "identity"}
    bearer = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.AsyncClient(headers=headers | bearer, auth=(url.username, url.password) if url.userinfo else None)


def _close(client: httpx.AsyncClient, loop: asyncio.AbstractEventLoop) -> None:
    asyncio.run_coroutine_threadsafe(client.aclose(), loop)


def reply(score: float) -> str:
    """A verdict in the one form that every reader of replies reads alike."""
    return f'{{"score": {score:g}}}'


def pause_asked_for(retry_after: str, now: datetime) -> float | None:
    """The seconds that a Retry-After header asks for, as a number or as a date; None if it says neither."""
    if retry_after.isascii() and retry_after.isdecimal():
        return float(retry_after)
    with contextlib.suppress(ValueError, OverflowError):
        date = email.utils.parsedate_to_datetime(retry_after)
        return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - now).total_seconds())
    return None


def _message(content: bytes) -> str:
    """What an error response says: the message of OpenAI's form, else the text as it is."""
    text = content.decode("utf-8", "replace")
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, RecursionError, LookupError, TypeError):
        return text


def from_environment(model: str, *, budget: int | None = None, seconds: float = 60.0) -> Endpoint:
    """The endpoint that OPENAI_BASE_URL and OPENAI_API_KEY name; OpenAI's own where there is only a key.

    Raises:
        RecipeError: they name none.
    """
    address, key = (os.environ.get(name, "").strip() for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"))
    if not address and not key:
        raise RecipeError(
            f"judge: {model!r} is a model's name, and nothing says where it is. Set OPENAI_BASE_URL to an OpenAI-style "
            "endpoint, such as http://127.0.0.1:8000/v1, and OPENAI_API_KEY if it wants a key; the key alone means "
            "OpenAI's own. judge=rules needs neither."
        )
    if not key.isascii() or not key.isprintable():
        raise RecipeError("OPENAI_API_KEY holds characters that no key has. Set it again.")
    address = address or "https://api.openai.com/v1"
    try:
        is_address = httpx.URL(address).scheme in {"http", "https"} and httpx.URL(address).host
    except httpx.InvalidURL:
        is_address = False
    if not is_address:
        raise RecipeError("OPENAI_BASE_URL is no address. It looks like http://127.0.0.1:8000/v1.")
    return Endpoint(model, address, key, cache=Cache(cache_file()), budget=budget, seconds=seconds)
