"""Asking a running node over HTTP, with the standard library alone: what the reading verbs do with --url.

Blocking; the verbs call it in worker threads. An answer that is refused becomes the error that the same question to a
directory would raise: `UsageError` for a wrong parameter, `RemoteError` for everything else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from http.client import HTTPException, HTTPResponse
from typing import Any, Final, cast
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

import attrs

from deltalog.errors import DeltaLogError, UsageError

TIMEOUT_S: Final = 60.0
"""Without a byte. A live tail sends one every 15 s."""
_ANSWER_BYTES_MAX: Final = 64 << 20

Parameters = Mapping[str, str | int | Sequence[str] | None]


class RemoteError(DeltaLogError):
    """Raised when a node cannot be asked, or cannot answer; the message says which and why."""

    retryable = True


class _NoRedirect(HTTPRedirectHandler):
    """A node never redirects; whoever does must not be given the token."""

    def redirect_request(self, *_args: Any, **_named: Any) -> None:
        return None


@attrs.frozen
class Remote:
    """A running node."""

    url: str
    token: str | None = attrs.field(default=None, repr=False)

    def __attrs_post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"url is {self.url[:100]!r}; it takes http://HOST:PORT or https://HOST:PORT")

    def get(self, path: str, parameters: Parameters) -> Any:
        """The JSON document at a path."""
        with self._open(path, parameters) as answer, _mapped(self.url):
            return json.loads(answer.read(_ANSWER_BYTES_MAX))

    def chunks(self, path: str, parameters: Parameters) -> Iterator[bytes]:
        """A long answer, as it comes. Raises `RemoteError` if it ends before its end."""
        with self._open(path, parameters) as answer, _mapped(self.url):
            while chunk := answer.read1(1 << 16):
                yield chunk

    def events(self, path: str, parameters: Parameters) -> Iterator[dict[str, Any]]:
        """The data of server-sent events, as they come."""
        with self._open(path, parameters) as answer, _mapped(self.url):
            for line in answer:
                if line.startswith(b"data: "):
                    yield json.loads(line[6:])

    def _open(self, path: str, parameters: Parameters) -> HTTPResponse:
        given = {name: value for name, value in parameters.items() if value is not None and value != ()}
        query = urlencode(given, doseq=True)
        request = Request(f"{self.url.rstrip('/')}{path}?{query}".rstrip("?"))  # noqa: S310  # the scheme is checked
        if self.token is not None:
            request.add_unredirected_header("Authorization", f"Bearer {self.token}")
        try:
            return cast("HTTPResponse", build_opener(_NoRedirect).open(request, timeout=TIMEOUT_S))
        except HTTPError as error:
            raise _refusal(self.url, error) from error
        except (URLError, OSError, HTTPException) as error:
            raise RemoteError(f"cannot ask {self.url}: {getattr(error, 'reason', None) or error}") from error


def _refusal(url: str, error: HTTPError) -> DeltaLogError:
    try:
        problem = json.loads(error.read(1 << 16))
        detail = str(problem["detail"])
    except (ValueError, KeyError, TypeError, OSError):
        detail = f"status {error.code}"
    return UsageError(detail) if error.code in (400, 404) else RemoteError(f"{url} refused: {detail}")


class _mapped:  # noqa: N801  # used as a function
    """Maps what reading an answer may raise."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, OSError | HTTPException | ValueError) and not isinstance(error, DeltaLogError):
            raise RemoteError(f"{self._url} broke off its answer: {error}") from error
