"""What a visitor gets at once for a page that is not stored yet, where its rule says so."""

from __future__ import annotations

import re
import typing as t
from collections.abc import Callable
from collections.abc import Iterable

from .passing import mark
from .respond import PRIVATE
from .rules import Rule

if t.TYPE_CHECKING:
    from _typeshed import OptExcInfo
    from _typeshed.wsgi import StartResponse
    from _typeshed.wsgi import WSGIApplication
    from _typeshed.wsgi import WSGIEnvironment

#: Crawlers that wait for the whole page, as in Next.js 16: they do not come back for it.
_CRAWLER = re.compile(
    r"googlebot(?!-)|[\w-]+-google|google-[\w-]+|chrome-lighthouse|slurp|duckduckbot|baiduspider"
    r"|yandex|sogou|bitlybot|tumblr|vkshare|quora link preview|redditbot|ia_archiver|bingbot"
    r"|bingpreview|applebot|facebookexternalhit|facebookcatalog|twitterbot|linkedinbot|slackbot"
    r"|discordbot|whatsapp|skypeuripreview|yeti|googleweblight",
    re.IGNORECASE,
)

#: Seconds after which a browser that got a shell asks for the page.
REFRESH = "1"


def is_crawler(environ: WSGIEnvironment) -> bool:
    """Whether a request comes from a crawler, by its ``User-Agent``."""
    return _CRAWLER.search(environ.get("HTTP_USER_AGENT", "")) is not None


class Shell:
    """Answers a browser at once while the page is rendered behind; a crawler waits for the page.

    :param app: the WSGI app that answers.
    """

    def __init__(self, app: WSGIApplication) -> None:
        self._app = app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        def private(
            status: str, headers: list[tuple[str, str]], exc_info: OptExcInfo | None = None, /
        ) -> t.Any:
            headers = mark(headers, None, True)
            if not any(name.lower() == "refresh" for name, _ in headers):
                headers.append(("Refresh", REFRESH))
            if exc_info is None:
                return start_response(status, headers)
            return start_response(status, headers, exc_info)

        return self._app(environ, private)


class Unlisted:
    """404 for paths that were not prerendered, but for those that are listed to be.

    :param is_listed: whether a request is for a path that exists, though it is not stored (yet,
        or any more).
    """

    def __init__(self, is_listed: Callable[[WSGIEnvironment], bool] | None = None) -> None:
        self.is_listed = is_listed

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        body = b"Not Found\n"
        start_response(
            "404 Not Found",
            [
                ("Content-Type", "text/plain; charset=utf-8"),
                ("Content-Length", str(len(body))),
                ("Cache-Control", PRIVATE),
            ],
        )
        return () if environ["REQUEST_METHOD"] == "HEAD" else (body,)


def fallback(rule: Rule, environ: WSGIEnvironment) -> Shell | Unlisted | None:
    """What is answered for a page that is not stored; ``None`` if the visitor waits for it."""
    if rule.fallback == "blocking":
        return None
    if rule.fallback is False:
        return Unlisted()
    if isinstance(rule.fallback, Unlisted):
        listed = rule.fallback.is_listed
        return None if listed is not None and listed(environ) else rule.fallback
    return None if is_crawler(environ) else Shell(rule.fallback)
