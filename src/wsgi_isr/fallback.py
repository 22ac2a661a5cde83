"""What a visitor gets at once for a page that is not stored, where its rule says so."""

from __future__ import annotations

import typing as t
from collections.abc import Callable, Iterable

from .passing import PRIVATE, with_status

if t.TYPE_CHECKING:
    from _typeshed import OptExcInfo
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

#: Crawlers that wait for the whole page, as in Next.js: they do not come back for it.
CRAWLERS = (
    "-google",
    "applebot",
    "baiduspider",
    "bingbot",
    "bingpreview",
    "bitlybot",
    "chrome-lighthouse",
    "discordbot",
    "duckduckbot",
    "facebookcatalog",
    "facebookexternalhit",
    "google-",
    "googlebot",
    "googleweblight",
    "ia_archiver",
    "linkedinbot",
    "quora link preview",
    "redditbot",
    "skypeuripreview",
    "slackbot",
    "slurp",
    "sogou",
    "tumblr",
    "twitterbot",
    "vkshare",
    "whatsapp",
    "yandex",
    "yeti",
)
#: Crawlers whose names begin like those of others, and that do not render (``googlebot-image``).
_FETCHERS = ("googlebot-",)
#: Characters of a ``User-Agent`` that are read; clients choose its length.
_MAX_AGENT = 1024
#: Seconds after which a browser that got a shell asks for the page.
REFRESH = "1"


def is_crawler(environ: WSGIEnvironment) -> bool:
    """Whether a request comes from a crawler, by its ``User-Agent``."""
    agent = environ.get("HTTP_USER_AGENT", "")[:_MAX_AGENT].lower()
    for name in _FETCHERS:
        agent = agent.replace(name, "")
    return any(name in agent for name in CRAWLERS)


def serve_shell(
    app: WSGIApplication, environ: WSGIEnvironment, start_response: StartResponse
) -> Iterable[bytes]:
    """Answer a browser at once; it asks again when the page may be there."""

    def private(
        status: str, headers: list[tuple[str, str]], exc_info: OptExcInfo | None = None, /
    ) -> t.Any:
        headers = with_status(headers, "isr; fwd=uri-miss; detail=fallback", True)
        if not any(name.lower() == "refresh" for name, _ in headers):
            headers.append(("Refresh", REFRESH))
        if exc_info is None:
            return start_response(status, headers)
        return start_response(status, headers, exc_info)

    return app(environ, private)


class Unlisted:
    """``fallback=False`` with a list: 404 for paths that neither exist in the store nor are listed.

    :param is_listed: whether a request is for a path that exists, though it is not stored.
    """

    def __init__(self, is_listed: Callable[[WSGIEnvironment], bool]) -> None:
        self.is_listed = is_listed

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return not_found(environ, start_response)


def not_found(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer 404 without asking the app."""
    body = b"Not Found\n"
    start_response(
        "404 Not Found",
        [
            ("Content-Type", "text/plain; charset=utf-8"),
            ("Content-Length", str(len(body))),
            ("Cache-Control", PRIVATE),
            ("Cache-Status", "isr; fwd=uri-miss; detail=fallback"),
        ],
    )
    return () if environ["REQUEST_METHOD"] == "HEAD" else (body,)
