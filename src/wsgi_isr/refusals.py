"""What an app's answer is: a page, or why it is none, and what to do about it."""

from __future__ import annotations

import re
import typing as t
from collections.abc import Collection, Iterable, Sequence
from urllib.parse import parse_qsl, unquote, urljoin, urlsplit

from .config import Config
from .key import PageKey, canonical_query, normalize_host
from .metadata import (
    GONE,
    NOT_NOW,
    REDIRECTS,
    STORABLE,
    STORABLE_IF_DECLARED,
    end_to_end,
    fields_of,
    is_sound,
    read_metadata,
)
from .page import Page
from .render import RenderError, RenderTimeout, Response
from .rules import Rule


class Refusal(t.NamedTuple):
    """Why an answer is no page.

    :param detail: in the words of ``Cache-Status``.
    :param culprit: what in the answer is the reason: a header, a cookie's name, a status.
    """

    detail: str
    culprit: str = ""

    @property
    def remedy(self) -> str:
        """What to do about it: for an app's author, and for the owner of an app that stays."""
        remedy = REMEDIES[self.detail]
        if self.detail == "set-cookie":
            if _TOKEN_COOKIE.search(self.culprit):
                remedy = REMEDIES["form-token"]
            remedy = next(filter(None, map(COOKIES.get, self.culprit.split(", "))), remedy)
        if self.detail in ("status", "no-metadata") and _LOGIN.match(self.culprit):
            remedy += f"; or {REMEDIES['login']}"
        return remedy

    def __str__(self) -> str:
        return f"{self.detail}: {self.culprit}" if self.culprit else self.detail


def remedy_of(reason: str) -> str | None:
    """What to do about a refusal that is given as a text; ``None`` for any other."""
    detail, _, culprit = reason.partition(": ")
    return Refusal(detail, culprit).remedy if detail in REMEDIES else None


def judge(
    config: Config, key: PageKey, previous: Page | None, response: Response
) -> Page | Refusal:
    """The page that a response makes, or why the app has decided that it is none.

    :param previous: what is stored.
    :raises RenderError: where the render has failed: the answer is not whole, says "not now", or
        has headers that HTTP does not allow.
    :raises InvalidMetadata: for ISR headers that do not parse.
    """
    code, headers = response.code, response.headers
    if response.detail == "too-slow":
        raise RenderTimeout("the app still sent blocks after render_timeout")
    if code >= 500 or code < 200 or code in NOT_NOW:
        if isinstance(error := response.error, Exception):
            raise RenderError(f"{response.status}: {type(error).__name__}: {error}") from error
        raise RenderError(f"the app answered {response.status}")
    for name, value in (*headers, ("Status", response.status)):
        if not is_sound(name, value):
            unsound = RenderError(f"HTTP does not allow {name[:80]!r}: {value[:80]!r}")
            unsound.detail = "header"
            raise unsound
    if response.detail == "stream":
        return Refusal("stream")
    rule, location = config.rule_of(key), next(iter(_values(headers, "location")), None)
    if code in REDIRECTS and _leads_to(key, location, config.parameters(rule)):
        return Refusal("redirect", location or "")
    said = rule or Rule()
    variants, ignored = dict(said.variants), said.ignore
    metadata = read_metadata(headers, said.revalidate, said.expire, said.tags)
    if metadata is None:
        if previous is None or code not in GONE:
            return Refusal("no-metadata", answered(code, headers))
        # The content is gone, and the app's 404 does not know whose it was.
        metadata = previous.metadata
    if refused := refusal(code, headers, variants, ignored):
        return refused
    if code in STORABLE_IF_DECLARED and location and _carries(key, location):
        return Refusal("login", location)
    if ignored and (token := form_token(response.body)) is not None:
        return Refusal("form-token", token)
    # Also where it is too large, and delivered.
    response.headers = [item for item in headers if item[0].lower() not in ignored]
    if response.detail == "too-large":
        return Refusal("too-large")
    return Page(
        key=key,
        status=response.status,
        headers=end_to_end(response.headers),
        bodies={"identity": response.body},
        metadata=metadata,
        generated_at=0.0,
        vary=tuple(name.title() for name in variants),
    )


def refusal(
    status: int,
    headers: Sequence[tuple[str, str]],
    variants: Iterable[str] = (),
    ignored: Collection[str] = (),
) -> Refusal | None:
    """Why a response with metadata is not stored; ``None`` if it is.

    :param variants: request headers, in lower case, that may make a difference.
    :param ignored: response headers, in lower case, that keep no answer from being a page.
    """
    if status in STORABLE_IF_DECLARED and _values(headers, "isr-revalidate"):
        if "cookie" in fields_of(headers, "vary"):
            return Refusal("login", f"{answered(status, headers)} with Vary: Cookie")
    elif status not in STORABLE:
        return Refusal("status", answered(status, headers))
    cookies = _values(headers, "set-cookie")
    if cookies and "set-cookie" not in ignored:
        names = (cookie.partition("=")[0].strip() for cookie in cookies)
        return Refusal("set-cookie", ", ".join(dict.fromkeys(names)))
    control = ", ".join(_values(headers, "cache-control"))
    if control and "cache-control" not in ignored:
        # Also behind a mistyped separator, as in "private; max-age=0".
        words = re.findall(r"[\w-]+", control.lower())
        if forbidding := sorted({"no-store", "private", "no-cache"}.intersection(words)):
            return Refusal("cache-control", ", ".join(forbidding))
    return None if "vary" in ignored else undeclared_vary(headers, variants)


def undeclared_vary(
    headers: Iterable[tuple[str, str]], variants: Iterable[str] = ()
) -> Refusal | None:
    """The refusal of an answer that depends on other request headers than these."""
    # The canonical request has neither cookies nor credentials, so they cannot matter.
    unknown = fields_of(headers, "vary") - {"accept-encoding", "cookie", "authorization", *variants}
    return Refusal("vary", ", ".join(sorted(unknown))) if unknown else None


def answered(status: int, headers: Iterable[tuple[str, str]]) -> str:
    """An answer in a few words: its status, and where it leads."""
    return " to ".join((str(status), *filter(None, _values(headers, "location")[:1])))


def _values(headers: Iterable[tuple[str, str]], name: str) -> list[str]:
    return [value for other, value in headers if other.lower() == name]


def _carries(key: PageKey, location: str) -> bool:
    """Whether a redirect carries the page's own URL, as one to a login does."""
    pairs = parse_qsl(location.partition("?")[2], encoding="latin-1")
    return any(value.partition("?")[0].endswith(key.full_path or "/") for _, value in pairs)


def _leads_to(key: PageKey, location: str | None, declared: tuple[str, ...]) -> bool:
    """Whether a redirect leads to the page itself, under whatever scheme.

    It does where the app behind ProxyFix takes the canonical request for a plain-text one.
    """
    try:
        there = urlsplit(urljoin(key.url, location))
    except ValueError:
        return False
    return (
        location is not None
        and normalize_host(there.netloc, there.scheme) == key.host
        and unquote(there.path or "/", "latin-1") == (key.full_path or "/")
        and canonical_query(there.query, declared) == key.query
    )


#: Answers to those who are not logged in.
_LOGIN = re.compile(r"40[13]\b|30[237] to .*(?:log-?in|sign-?in|auth|sso|next=)", re.IGNORECASE)
_TOKEN_COOKIE = re.compile("[cx]srf", re.IGNORECASE)
#: For adapters of frameworks: what to do about cookies that they set, by name.
COOKIES: dict[str, str] = {}
REMEDIES = {
    "set-cookie": "a page is the same for everybody: do not set cookies while "
    "environ['wsgi_isr.reason'] is present, or, where the cookie means nothing, "
    "Rule(ignore=('Set-Cookie',))",
    "cache-control": "drop that directive or the ISR header, or, where it means nothing, "
    "Rule(ignore=('Cache-Control',))",
    "vary": "declare the request header with Rule(vary={...}), or do not let the page depend on it",
    "status": "200, 301, 308, 404 and 410 are pages, and 302 and 307 with an ISR-Revalidate header",
    "login": "the page depends on who is logged in: set bypass= to the cookie of a login, or "
    "exclude the URL with a rule of None",
    "redirect": "the page redirects to itself: put ProxyFix outside of ISRMiddleware, or set "
    "base_url, or declare the query parameter that makes the difference",
    "metadata": "correct the ISR header, or what isr_page.current was given",
    "header": "correct it where the app sets it",
    "form-token": "each POST of this form would fail, because its token belongs to a cookie: "
    "exclude the URL with a rule of None, or fetch the form separately",
    "stream": "a body without an end is no page: exclude the URL with a rule of None",
    "too-large": "raise max_body_size, or memcached's -I; or exclude the URL with a rule of None",
    "too-slow": "raise render_timeout, or exclude the URL with a rule of None",
    "no-metadata": "the answer to a request without cookies and credentials has no ISR-Revalidate "
    "header, and no rule gives it a window",
}

#: Tokens against CSRF: in fields of Django, Flask-WTF, Tornado, Rails, Laravel, ASP.NET, Symfony,
#: Express, Trac, Roundup, WordPress and their like, and where a script reads them.
_FORM_TOKEN = re.compile(
    rb"""name\s*=\s*["']?([\w@-]{0,40}[cx]srf(?:[_-]?\w{0,20}token)?|authenticity_token|_token"""
    rb"""|_wpnonce|form_key|__requestverificationtoken|(?:__)?form_token)["'\s>/]"""
    rb"""|([cx]srf[_-]?token)(?:["']|&quot;|&\#34;)?\s*[:=]\s*(?:["']|&quot;|&\#34;)""",
    re.IGNORECASE,
)


def form_token(body: bytes) -> str | None:
    """The name of a token against CSRF, if a page has one."""
    found = _FORM_TOKEN.search(body)
    return None if found is None else (found[1] or found[2]).decode()
