"""Why an answer is no page, what in it is the reason, and what to do about it."""

from __future__ import annotations

import re
import typing as t
from collections.abc import Iterable, Sequence

from .metadata import STORABLE, STORABLE_IF_DECLARED, vary_fields


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


def refusal(
    status: int,
    headers: Sequence[tuple[str, str]],
    variants: Iterable[str] = (),
    ignored: frozenset[str] = frozenset(),
) -> Refusal | None:
    """Why a response with metadata is not stored; ``None`` if it is.

    :param variants: request headers, in lower case, that may make a difference.
    :param ignored: response headers, in lower case, that keep no answer from being a page.
    """
    values: dict[str, list[str]] = {}
    for name, value in headers:
        values.setdefault(name.lower(), []).append(value)
    fields = vary_fields(headers)
    if status in STORABLE_IF_DECLARED and "isr-revalidate" in values:
        if "cookie" in fields:
            return Refusal("login", f"{answered(status, headers)} with Vary: Cookie")
    elif status not in STORABLE:
        return Refusal("status", answered(status, headers))
    if "set-cookie" in values and "set-cookie" not in ignored:
        names = (value.partition("=")[0].strip() for value in values["set-cookie"])
        return Refusal("set-cookie", ", ".join(dict.fromkeys(names)))
    control = ", ".join(values.get("cache-control", ()))
    if control and "cache-control" not in ignored:
        # Also behind a mistyped separator, as in "private; max-age=0".
        words = re.findall(r"[\w-]+", control.lower())
        if forbidding := sorted({"no-store", "private", "no-cache"}.intersection(words)):
            return Refusal("cache-control", ", ".join(forbidding))
    # The canonical request has neither cookies nor credentials, so they cannot matter.
    unknown = fields - {"accept-encoding", "cookie", "authorization", *variants}
    if unknown and "vary" not in ignored:
        return Refusal("vary", ", ".join(sorted(unknown)))
    return None


def answered(status: int, headers: Iterable[tuple[str, str]]) -> str:
    """An answer in a few words: its status, and where it leads."""
    location = next((value for name, value in headers if name.lower() == "location"), "")
    return f"{status} to {location}" if location else str(status)


#: Answers to those who are not logged in.
_LOGIN = re.compile(r"40[13]\b|30[237] to .*(?:log-?in|sign-?in|auth|sso|next=)", re.IGNORECASE)
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
    "metadata": "correct the ISR header",
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
