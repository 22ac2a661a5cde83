"""What a path names, and why a page is as it is."""

from __future__ import annotations

import re
import typing as t
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from .key import Origin, Origins, PageKey, address_of, are_trackers, is_ambiguous, undeclared
from .listing import Inspection, call_row, info_of, millis, moment, span
from .metadata import REDIRECTS
from .outcome import refusal_name
from .page import Invalidated, Page, Render, state_of
from .passing import FALLBACK
from .refusals import remedy_of
from .rules import Rule, check_pattern, compile_pattern, is_pattern, to_wsgi
from .store.memory import Entry
from .store.pages import Listed

if t.TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

#: A path or a whole URL: scheme, host, path, query.
_NAMED = re.compile(r"(?=/|https?://)(?:(https?)://([^/?]*))?([^?]*)(?:\?(.*))?", re.IGNORECASE)
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f\ud800-\udfff#]")
#: Facts of a stored page.
_SHARED = {"state", "age", "ttl", "tags", "status", "seconds", "renders", "failures"}


@dataclass(frozen=True)
class Explanation:
    """What would happen to a request for a URL, and why; see `ISRMiddleware.explain`.

    :param rule: the rule that counts; ``"None"`` for one that excludes the URL.
    :param state: as in `PageInfo`; ``"excluded"``; or ``"unknown"`` where nothing is remembered.
    :param invalidated_by: the label that made it stale or expired, as ``"tag:post:1"``.
    :param refusal: why its app's answer was refused last, since the page was rendered.
    :param error: why its last renders failed.
    :param answer: what a visitor gets, with its ``Cache-Status``.
    :param rules: what was considered to find the rule, and what came of it.
    :param variants: what else is stored of its path: other hosts, queries, variants, builds.
    :param remedy: what to do about the refusal.
    :param invalidation: the call that invalidated it, from the journal: when, what, by whom.
    """

    url: str
    key: dict[str, t.Any]
    rule: str | None
    state: str
    age: float | None = None
    ttl: int | None = None
    tags: tuple[str, ...] = ()
    build: str = ""
    rendered_at: float | None = None
    reason: str | None = None
    seconds: float | None = None
    invalidated_by: str | None = None
    refusal: str | None = None
    error: str | None = None
    answer: str = ""
    rules: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    status: int | None = None
    renders: tuple[Render, ...] = ()
    remedy: str | None = None
    failures: int = 0
    invalidation: dict[str, t.Any] | None = None


class Named(t.NamedTuple):
    """What a path or a whole URL names; `OnDemand.revalidate` renders its ``pages``."""

    asked: str
    #: ``None`` if only the store knows.
    place: Origin | None
    #: Of a whole URL; ``None``: every host is meant.
    host: str | None
    #: With the mount point, decoded.
    path: str
    query_string: str
    #: Of whatever build, by URL.
    stored: Sequence[Listed] = ()
    pages: Sequence[PageKey] = ()

    @property
    def label(self) -> str:
        """What is invalidated with it."""
        return f"path:{self.path}" if self.host is None else f"host:{self.host}{self.path}"


class Lookup(Inspection):
    """What operators ask of paths."""

    def _stored(self, path: str) -> list[Listed]:
        """What is stored of a full path, of whatever build, by URL."""

        def records() -> list[Listed]:
            return [listed for _, listed in pages.listed(path=path) if listed]

        pages = self._pages
        found = pages.guard.read(records) if pages.lists else None
        if found is None:
            entries = pages.memory.of_path(path)
            found = [Listed(entry.page, (), entry.invalidated) for entry in entries]
        return sorted(found, key=lambda listed: listed.page.key.url)

    def _named(self, path: str) -> Named:
        """
        :raises ValueError: for what is no path.
        """
        named = parse(self._config.origins, path, self._origin)
        place, stored = named.place, self._stored(named.path)
        if place is not None and not place.mount:
            # Outside of a request only the store knows the mount point.
            mounts = (listed.page.key.mount for listed in stored)
            mount = max((m for m in mounts if is_under(m, named.path)), key=len, default="")
            place = place._replace(mount=mount)
        return named._replace(place=place, stored=stored)

    def _find(
        self, named: Named, headers: Iterable[tuple[str, str]] = ()
    ) -> tuple[WSGIEnvironment, PageKey, Rule | None, bool]:
        """A visitor's request for what is named, its page, its rule, and whether that excludes it.

        :raises ValueError: where no host is known, or the query is too long.
        """
        place = named.place
        if place is None:
            raise ValueError(
                f"no host is known for {named.asked!r}: call this in a request, give a whole URL, "
                "or set base_url (for a command --base-url)"
            )
        key = PageKey(*place, named.path.removeprefix(place.mount))
        environ = key.to_environ("", self._config.middleware)
        del environ["wsgi_isr.reason"]
        environ["QUERY_STRING"] = named.query_string
        environ |= {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in headers}
        key, rule, excluded = self._config.find(place, environ)
        if key.is_too_long:
            raise ValueError(f"{named.asked[:200]!r}... has a query that is too long for a page")
        return environ, key, rule, excluded

    def explain(self, url: str, headers: Iterable[tuple[str, str]] = ()) -> Explanation:
        """
        :param headers: of the visitor who asks for it, besides those of a canonical request.
        """
        config, pages, named = self._config, self._pages, self._named(url)
        if named.place is None and named.stored:
            named = named._replace(place=Origin(*named.stored[0].page.key[:3]))
        environ, key, rule, excluded = self._find(named, headers)
        entry = None if excluded else pages.find(key, self._clock())
        failures = self._process.failures
        failure, refused = failures.find(key.name), failures.find(refusal_name(key.name))
        if entry is not None and refused is not None and refused.retry_at < entry.page.generated_at:
            refused = None
        refusal = self._process.not_pages.get(key) if refused is None else refused.error
        about: dict[str, t.Any] = {
            "url": key.url,
            "key": key._asdict() | {"mount": address_of(key.mount), "path": address_of(key.path)},
            "rule": "None" if excluded else None if rule is None else repr(rule),
            "state": "excluded" if excluded else "unknown" if failure is None else "failed",
            "build": key.build,
            "refusal": refusal or None,
            "remedy": remedy_of(refusal or ""),
            "error": None if failure is None else failure.error,
            "failures": 0 if failure is None else failure.times,
            "rules": tuple(config.rules.consider(environ)),
            "variants": tuple(self._others(named, key)),
        }
        if entry is not None:
            info = info_of(Listed(entry.page, (), entry.invalidated), self._clock(), failure)
            about |= {name: value for name, value in info._asdict().items() if name in _SHARED}
            about |= {
                "error": info.last_error,
                "reason": entry.page.reason,
                "rendered_at": entry.page.generated_at,
                **(self._invalidation(entry, named) if entry.invalidated else {}),
            }
        return Explanation(**about, answer=self._answer(about, environ, key, rule))

    def _answer(
        self, about: dict[str, t.Any], environ: WSGIEnvironment, key: PageKey, rule: Rule | None
    ) -> str:
        """What a visitor gets."""
        state, ttl, config = about["state"], about.get("ttl", 0), self._config
        if state == "excluded":
            return "the app's own answer: a rule of None excludes this URL"
        if config.bypass is not None and (detail := config.bypass(environ)) is not None:
            return f"the app's own answer (isr; fwd=bypass; detail={detail})"
        names = undeclared(environ["QUERY_STRING"], config.parameters(rule))
        passes = rule is not None and rule.undeclared == "pass" and not are_trackers(names)
        if passes or (names and about.get("status") in REDIRECTS):
            return "the app's own answer (isr; fwd=uri-miss; detail=query)"
        if state == "fresh":
            return f"the stored page (isr; hit{'' if ttl is None else f'; ttl={ttl}'})"
        if state == "stale":
            return f"the stored page, which is rendered anew afterwards (isr; hit; ttl={ttl or 0})"
        if state == "expired":
            return "a new page, which they wait for (isr; fwd=stale; stored)"
        if rule is not None and not self._process.not_pages.get(key):
            fallback = self._process.fallback(environ, key, rule)
            if fallback is not None:
                what = "404: no such path is listed" if fallback is False else "a shell"
                return f"{what} ({FALLBACK})"
        if detail := (about["refusal"] or "").partition(":")[0]:
            return f"the app's own answer (isr; fwd=uri-miss; detail={detail})"
        if rule is None:
            return (
                "the app's own answer, a page if it has ISR-Revalidate (isr; fwd=uri-miss; stored)"
            )
        return "a new page, which they wait for (isr; fwd=uri-miss; stored)"

    def _others(self, named: Named, key: PageKey) -> Iterator[str]:
        for listed in named.stored:
            other = listed.page.key
            if other != key:
                words = [f"{name}: {value}" for name, value in other.vary]
                words += [f"build {other.build!r}"] if other.build != key.build else []
                state = state_of(listed.page, listed.invalidated, self._clock()).value
                yield ", ".join((f"{other.url} {state}", *words))

    def _invalidation(self, entry: Entry, named: Named) -> dict[str, t.Any]:
        """What has made a page stale or expired, and the call that did so."""
        for listed in named.stored:
            build = listed.page.key.build
            if listed.page.render == entry.page.render and build != entry.page.key.build:
                return {"invalidated_by": f"the deploy: it is of build {build!r}"}
        changes = self._pages.guard.read(self._pages.store.changes, entry.number)
        made = changes.invalidations if changes is not None and changes.complete else ()
        expired = entry.invalidated is Invalidated.EXPIRED
        about = [i for i in made if i.expire >= expired and _is_about(i.label, entry.page)]
        if not about:
            return {"invalidated_by": "one that the store no longer lists"}
        last = max(about, key=lambda invalidation: invalidation.sequence)
        # A call may have tags and patterns.
        of_tags = last.label.startswith("tag:")
        calls = (
            call
            for call in self.journal()
            if call.get("number") == last.sequence and (call.get("kind") == "tags") == of_tags
        )
        is_path = last.label.startswith(("path:", "host:"))
        label = address_of(last.label) if is_path else last.label
        return {"invalidated_by": label, "invalidation": next(calls, None)}


def _is_about(label: str, page: Page) -> bool:
    kind, _, name = label.partition(":")
    if kind == "pattern":
        return compile_pattern(name).fullmatch(page.key.full_path or "/") is not None
    return label in page.labels


def explanation_rows(found: Explanation) -> Iterator[tuple[str, str]]:
    """What there is to say of a page, one fact a row."""
    said = {name: value for name, value in vars(found).items() if value not in (None, (), "")}
    if found.rendered_at is not None:
        said["rendered_at"] = moment(found.rendered_at)
        said["age"], said["seconds"] = span(found.age or 0), millis(found.seconds or 0)
    if found.renders:
        said["renders"] = tuple(
            f"{moment(r.at)}: {millis(r.seconds)} {r.reason}" for r in found.renders
        )
    if (call := found.invalidation) is not None:
        said["invalidation"] = ", ".join((moment(call.get("at", 0)), *call_row(call)))
    for name, value in said.items():
        for index, word in enumerate(value if isinstance(value, tuple) else (value,)):
            yield "" if index else name.replace("_", " "), str(word)


# Paths and patterns as users write them.


def parse(origins: Origins, path: str, origin: Origin | None) -> Named:
    """What a path names, as far as can be said without the store.

    :param origin: of the request in which it is named.
    :raises ValueError: for what is no path.
    """
    if not isinstance(path, str):
        raise ValueError(f"pass each path as an argument: revalidate(*paths), not {path!r}")
    found = None if _FORBIDDEN.search(path) else _NAMED.fullmatch(path)
    if found is None:
        raise ValueError(f"a path starts with /, is percent-encoded and has no fragment: {path!r}")
    scheme, netloc, local, query_string = found.groups("")
    mount, host = _mount(origins, origin), None
    place = origin if origins.base is None else origins.base._replace(mount=mount)
    if scheme:
        # A job may not know the scheme of ``base_url``.
        scheme = scheme.lower() if origins.base is None else origins.base.scheme
        host = origins.trust(scheme, netloc)
        if host is None:
            raise ValueError(f"{path!r} is on a host that has no pages")
        place = Origin(scheme, host, mount)
    if is_pattern(local):
        raise ValueError(
            f"{path!r} is a pattern, which invalidate() takes; write *, < and [ of a path as %2A, "
            "%3C and %5B"
        )
    full_path = to_wsgi(local or "/")
    if is_ambiguous(full_path):
        raise ValueError(f"{path!r} has //, dot segments, \\ or control characters")
    if not is_under(mount, full_path):
        raise ValueError(f"{path!r} is not under the mount point {mount!r}")
    # In WSGI's spelling, which a query that is not percent-encoded needs, too.
    return Named(path, place, host, full_path, query_string.encode().decode("latin-1"))


def label_of(origins: Origins, pattern: str, origin: Origin | None) -> str:
    """What a pattern invalidates.

    :raises ValueError: for a pattern that can never match.
    """
    check_pattern(pattern)
    mount, literal = _mount(origins, origin), to_wsgi(pattern.partition("*")[0])
    may_match = "*" in pattern and (mount + "/").startswith(literal)
    if not may_match and not is_under(mount, literal):
        raise ValueError(f"{pattern!r} can never match: pages are under {mount!r}")
    return f"pattern:{pattern}" if "*" in pattern else f"path:{literal}"


def _mount(origins: Origins, origin: Origin | None) -> str:
    """The mount point of all pages, or of the request; ``""`` where nobody knows."""
    return (origins.base.mount if origins.base else "") or (origin.mount if origin else "")


def is_under(mount: str, full_path: str) -> bool:
    return not mount or full_path == mount or full_path.startswith(mount + "/")
