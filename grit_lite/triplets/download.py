"""A file from the web, asked for politely and not trusted: a host may be down, slow, moved or taken over.

Only https, and only addresses of the public internet, at first and after each redirect; a limit on the bytes, on each
wait and on the whole file; a few tries, and no more of them at a host that has stopped answering. What the bytes are is
for the caller to check.
"""

import ipaddress
import socket
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import httpx

from grit_lite import __version__
from grit_lite.errors import DataError, NotFetched

_MAX_REDIRECTS = 5
_NOT_THERE = {403, 404, 410}  # a bucket that does not list its files answers 403 for one that it does not have
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_PATIENCE = 5  # files in a row that one host failed to send, before it is left alone


class NotThere(DataError):
    """A host answered that it has no such file."""


class Web:
    """One session: it keeps connections open, and remembers which hosts do not answer.

    Args:
        trusted: origins, such as "http://127.0.0.1:8000", that may be unencrypted and not public.
        pauses: seconds before each further try of an address.
        wait: seconds for a connection, and for each piece of an answer.
        deadline: seconds for one try of a whole file.
    """

    def __init__(
        self,
        trusted: frozenset[str] = frozenset(),
        *,
        pauses: Sequence[float] = (1.0, 4.0),
        wait: float = 15.0,
        deadline: float = 120.0,
    ) -> None:
        self.trusted = trusted
        self.pauses = tuple(pauses)
        self.deadline = deadline
        self._failures: Counter[str] = Counter()
        # Without encodings that a small answer could hide a huge one in.
        headers = {"User-Agent": f"grit-lite/{__version__}", "Accept-Encoding": "identity"}
        self._client = httpx.Client(timeout=wait, headers=headers)

    def __enter__(self) -> "Web":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def fetch(self, addresses: Sequence[str], max_bytes: int) -> tuple[bytes, str]:
        """The bytes at the first of the addresses that has them, and that address.

        Raises:
            DataError: none has them, or what one sends cannot be taken. The message names the address.
            NotFetched: a host does not answer, or has not answered so often that it is no longer asked.
        """
        absent = []
        for address in addresses:
            try:
                return self._patiently(address, max_bytes), address
            except NotThere as error:
                absent.append(str(error))
        raise NotThere("; ".join(absent))

    def size(self, addresses: Sequence[str]) -> int | None:
        """The bytes of the file as a host states them without sending it; None where none does. Raises as `fetch`."""
        for address in addresses:
            with self._counted(address), self._answer("HEAD", address) as response:
                stated = response.headers.get("content-length", "")
                if response.status_code == httpx.codes.OK:
                    return int(stated) if stated.isdecimal() else None
        return None

    def _patiently(self, address: str, max_bytes: int) -> bytes:
        with self._counted(address):
            for pause in self.pauses:
                try:
                    return self._once(address, max_bytes)
                except NotFetched:
                    time.sleep(pause)
            return self._once(address, max_bytes)

    @contextmanager
    def _counted(self, address: str) -> Iterator[None]:
        """Refuses a host that failed too often in a row; counts its failures."""
        host = httpx.URL(address).netloc.decode()
        if self._failures[host] >= _PATIENCE:
            raise NotFetched(f"{address}: {host} failed {_PATIENCE} times in a row and is not asked again")
        before, self._failures[host] = self._failures[host], 0
        try:
            yield
        except NotFetched:
            self._failures[host] = before + 1
            raise

    def _once(self, address: str, max_bytes: int) -> bytes:
        end = time.monotonic() + self.deadline
        with self._answer("GET", address) as response:
            _check_answer(response, max_bytes)
            data = bytearray()
            for piece in response.iter_raw():
                data += piece
                if len(data) > max_bytes:
                    raise DataError(f"{response.url}: it is larger than the limit of {max_bytes:,} bytes")
                if time.monotonic() > end:
                    raise NotFetched(f"{response.url}: not there after {self.deadline:.0f} seconds")
            return bytes(data)

    @contextmanager
    def _answer(self, method: str, address: str) -> Iterator[httpx.Response]:
        """The answer after redirects, each checked before it is followed; its body is not read yet."""
        request = self._client.build_request(method, address)
        try:
            for _ in range(_MAX_REDIRECTS + 1):
                self._check_url(request.url)
                response = self._client.send(request, stream=True)
                try:
                    self._check_peer(response)
                    if response.next_request is None:
                        yield response
                        return
                    request = response.next_request
                finally:
                    response.close()
        except httpx.HTTPError as error:
            raise NotFetched(f"{request.url}: {error or type(error).__name__}") from error
        raise DataError(f"{address}: redirected more than {_MAX_REDIRECTS} times")

    def _check_url(self, url: httpx.URL) -> None:
        if _origin(url) in self.trusted:
            return
        if url.scheme != "https":
            raise DataError(f"{url}: not https, and so not asked")
        for found in _addresses(url):
            _check_public(found, url)

    def _check_peer(self, response: httpx.Response) -> None:
        """The name may have meant another machine when it was looked up again to connect."""
        url = response.request.url
        if _origin(url) not in self.trusted and not _through_proxy(url):
            _check_public(response.extensions["network_stream"].get_extra_info("server_addr")[0], url)


def _check_answer(response: httpx.Response, max_bytes: int) -> None:
    status, url = response.status_code, response.url
    kind, stated = response.headers.get("content-type", ""), response.headers.get("content-length", "")
    if status in _NOT_THERE:
        raise NotThere(f"{url}: HTTP {status} {response.reason_phrase}")
    if status in _PASSING:
        raise NotFetched(f"{url}: HTTP {status} {response.reason_phrase}")
    if status != httpx.codes.OK:
        raise DataError(f"{url}: HTTP {status} {response.reason_phrase}")
    if kind.startswith("text/"):
        raise DataError(f"{url}: the answer is a page ({kind}), not an image")
    if stated.isdecimal() and int(stated) > max_bytes:
        raise DataError(f"{url}: it has {int(stated):,} bytes; the limit is {max_bytes:,}")


def _origin(url: httpx.URL) -> str:
    return f"{url.scheme}://{url.netloc.decode()}"


def _addresses(url: httpx.URL) -> list[str]:
    """The IP addresses behind a URL's host. Through a proxy it is the proxy that looks names up."""
    if _through_proxy(url):
        return [url.host] if _is_ip(url.host) else []
    try:
        found = socket.getaddrinfo(url.host, url.port or 443, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise NotFetched(f"{url}: the name {url.host} is not known here ({error}); check the network") from error
    return [str(address[0]) for *_, address in found]


def _through_proxy(url: httpx.URL) -> bool:
    proxies = urllib.request.getproxies()
    return bool(proxies.get(url.scheme) or proxies.get("all")) and not urllib.request.proxy_bypass(url.host)


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _check_public(found: str, url: httpx.URL) -> None:
    if not ipaddress.ip_address(found.partition("%")[0]).is_global:
        raise DataError(f"{url}: {url.host} is {found}, which is not on the public internet, and so not asked")
