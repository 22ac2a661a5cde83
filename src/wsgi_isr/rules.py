"""What the site says of a URL: `Rule`, URL patterns, and what finds the rule of a request.

The first rule that matches a path counts.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import re
import time
import typing as t
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

from werkzeug.datastructures import Accept, CharsetAccept, LanguageAccept, MIMEAccept
from werkzeug.http import parse_accept_header

from .key import is_ambiguous
from .metadata import HEADER_NAME, check_expire, check_list, check_revalidate, check_tags

if t.TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

logger = logging.getLogger("wsgi_isr")

_ACCEPT_CLASSES: dict[str, type[Accept]] = {
    "accept": MIMEAccept,
    "accept-charset": CharsetAccept,
    "accept-language": LanguageAccept,
}
#: Seconds between two log records about a callable that fails.
QUIET = 60.0
# A longer value is as good as none: parsing 64 KB takes a tenth of a second.
_MAX_LENGTH = 1024
# A page that depends on one of these is not one page for all: the canonical request has none.
_NEVER_VARY = re.compile(
    r"isr-.*|if-.*|accept-encoding|authorization|content-(?:length|type)|cookie|host|range"
)


#: Names of request headers, each with the values that make a difference.
Variants: t.TypeAlias = "tuple[tuple[str, tuple[str | None, ...]], ...]"


@dataclass(frozen=True)
class Rule:
    """What you say of a URL before the app is asked.

    A rule declares its URLs: the app only ever sees canonical requests for them. A rule with
    ``revalidate`` makes pages of an app that sends no ISR headers; a header of the response
    wins over the rule.

    :param revalidate: seconds a page is fresh, 1 or more; ``False``: until it is revalidated on
        demand; ``None``: only the response says.
    :param expire: seconds after which a stale page is not served any more, at least
        ``revalidate``; ``None``: no limit.
    :param tags: names by which many pages are invalidated at once.
    :param query: query parameters that are part of a page's key.
    :param vary: request headers that are part of a page's key, each with the values it is
        reduced to; the first one is the default. ``None`` among them stands for its absence.
    :param fallback: ``"blocking"``: the first visitor of a page waits for its render.
        ``False``: only prerendered paths exist. A callable: a WSGI app that answers a browser
        at once while the page is rendered.
    :param ignore: for apps that you cannot change: response headers, of ``"Set-Cookie"``,
        ``"Cache-Control"`` and ``"Vary"``, that keep no answer from being a page and are not
        stored with it.
    :param undeclared: ``"ignore"``: query parameters that are not in ``query`` make no
        difference. ``"pass"``: a request that has some goes to the app, unless they are those of
        campaigns and click trackers (``utm_*``, ``fbclid`` ...).
    :raises TypeError: for an argument of the wrong kind, with the remedy.
    :raises ValueError: for a value that cannot work, with the remedy.
    """

    revalidate: int | t.Literal[False] | None = None
    expire: int | None = None
    tags: Sequence[str] = ()
    query: Sequence[str] = ()
    vary: Mapping[str, Sequence[str | None]] | None = None
    fallback: t.Any = "blocking"
    ignore: Collection[str] = ()
    undeclared: t.Literal["ignore", "pass"] = "ignore"
    #: Query parameters in WSGI's spelling.
    parameters: tuple[str, ...] = field(init=False, default=(), repr=False)
    #: ``vary`` with names in lower case, sorted.
    variants: Variants = field(init=False, default=(), repr=False)

    def __post_init__(self) -> None:
        if self.revalidate is not None:
            check_revalidate(self.revalidate)
        check_expire(self.expire, self.revalidate)
        # A 0 equals False.
        if self.fallback != "blocking" and not (self.fallback is False or callable(self.fallback)):
            raise ValueError(
                f"fallback takes 'blocking', False or a callable, not {self.fallback!r}"
            )
        if self.undeclared not in ("ignore", "pass"):
            raise ValueError(f"undeclared takes 'ignore' or 'pass', not {self.undeclared!r}")
        ignore = {str(name).lower() for name in check_list("ignore", self.ignore, "Set-Cookie")}
        if unknown := ignore - {"set-cookie", "cache-control", "vary"}:
            raise ValueError(
                f"ignore takes 'Set-Cookie', 'Cache-Control' and 'Vary', not {sorted(unknown)[0]!r}"
            )
        query = check_list("query", self.query, "page")
        for name, value in {
            "tags": check_tags(self.tags),
            "query": query,
            "ignore": frozenset(ignore),
            "parameters": check_query(query),
            "variants": _check_vary(self.vary or {}),
        }.items():
            object.__setattr__(self, name, value)

    def vary_of(self, environ: WSGIEnvironment) -> tuple[tuple[str, str | None], ...]:
        """The declared request headers of a visitor, each reduced to one of its listed values."""
        return tuple(
            (name, _reduce(name, environ.get("HTTP_" + name.upper().replace("-", "_")), values))
            for name, values in self.variants
        )

    def all_variants(self) -> Iterator[tuple[tuple[str, str | None], ...]]:
        """All combinations of the declared values, the default ones first."""
        names = [name for name, _ in self.variants]
        for values in itertools.product(*(values for _, values in self.variants)):
            yield tuple(zip(names, values, strict=True))


def _reduce(name: str, value: str | None, allowed: tuple[str | None, ...]) -> str | None:
    texts = [item for item in allowed if item is not None]
    other = None if None in allowed else allowed[0]
    if value is None or len(value) > _MAX_LENGTH:
        return other
    if (accept := _ACCEPT_CLASSES.get(name)) is None:
        value = value.strip().lower()
        return next((item for item in texts if item.lower() == value), other)
    try:
        best = parse_accept_header(value, accept).best_match(texts)
    except ValueError:
        # Werkzeug refuses some values; a value that says nothing is as good as none.
        best = None
    return other if best is None else best


def check_query(names: Iterable[str]) -> tuple[str, ...]:
    names = check_list("query", names, "page")
    for name in names:
        if not isinstance(name, str) or not name:
            raise ValueError(f"query takes names of query parameters, not {name!r}")
    # The key spells parameters as bytes in latin-1, like the rest of WSGI.
    return tuple(name.encode().decode("latin-1") for name in names)


def _check_vary(vary: Mapping[str, Sequence[str | None]]) -> Variants:
    if not isinstance(vary, Mapping):
        raise TypeError('vary takes a mapping, as in {"Accept-Language": ["en", "de"]}')
    found: dict[str, tuple[str | None, ...]] = {}
    for name, values in vary.items():
        if not isinstance(name, str) or not HEADER_NAME.fullmatch(name):
            raise ValueError(f"vary takes names of request headers, not {name!r}")
        if _NEVER_VARY.fullmatch(name.lower()):
            raise ValueError(f"a page cannot vary by {name}, because it is the same for everybody")
        if name.lower() in found:
            raise ValueError(f"vary has {name!r} twice")
        # Not a set: the first value is the default.
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise ValueError(f"vary[{name!r}] takes a list of the values that make a difference")
        for value in values:
            is_plain = isinstance(value, str) and value.isascii() and value.isprintable()
            if value is not None and not is_plain:
                raise ValueError(f"vary[{name!r}] takes plain values, not {value!r}")
        found[name.lower()] = tuple(dict.fromkeys(values))
    return tuple(sorted(found.items()))


_ROUTE = re.compile(r"<[^>]*>|\[[^\]]*\]")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
#: Any number of segments, and the end of one.
_ANY_SEGMENTS = "(?:/[^/]*)*"
_END = r"(?=/|\Z)"


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """A path pattern as a regular expression over WSGI paths.

    ``*`` is one segment (or a part of one), ``**`` any number of segments, none among them, and
    ``%2A`` is the character itself.

    :raises ValueError: for a pattern that does not start with ``/``.
    """
    if not isinstance(pattern, str) or not pattern.startswith("/") or pattern.startswith("//"):
        raise ValueError(f"a pattern is a path with * and **, as in '/blog/*', not {pattern!r}")
    if len(pattern) > 1024 or _UNPRINTABLE.search(pattern):
        raise ValueError(f"a pattern has at most 1024 printable characters: {pattern!r}")
    # The runs of segments between the **; runs of ** mean what one means.
    runs = [""]
    for segment in pattern.split("/")[1:]:
        if segment == "**":
            runs.append("")
        else:
            runs[-1] += _segment(segment)
    expression, *others = runs
    if others:
        *between, last = others
        for run in filter(None, between):
            # The first place that fits is as good as any later one, since a ** follows.
            expression += f"(?>{_ANY_SEGMENTS}?{run}{_END})"
        expression += _ANY_SEGMENTS + last
    return re.compile(expression, re.DOTALL)


def is_pattern(path: str) -> bool:
    """Whether a path has wildcards or variables; those of its own are percent-encoded."""
    return "*" in path or _ROUTE.search(path) is not None


def check_pattern(pattern: str) -> re.Pattern[str]:
    """The same for a pattern that a user writes.

    :raises ValueError: for one that can never match, too.
    """
    compiled = compile_pattern(pattern)
    for bad, what in (("?", "query"), ("#", "fragment")):
        if bad in pattern:
            raise ValueError(f"{pattern!r} can never match: a path has no {what}")
    if _ROUTE.search(pattern):
        raise ValueError(f"{pattern!r} can never match: write * in place of a variable")
    if is_ambiguous(to_wsgi(pattern.replace("*", "x"))):
        raise ValueError(f"{pattern!r} can never match: no page has such a path")
    return compiled


def _segment(segment: str) -> str:
    """A segment of a pattern, as an expression that does not backtrack on made-up paths."""
    if segment == "*":
        return "/[^/]++"
    first, *others = (re.escape(to_wsgi(part)) for part in re.split(r"\*+", segment))
    if not others:
        return f"/{first}"
    *between, last = others
    found = "".join(f"(?>[^/]*?{part})" for part in between)
    return f"/{first}{found}(?>[^/]*{last}{_END})"


def to_wsgi(text: str) -> str:
    return unquote_to_bytes(text).decode("latin-1")


RuleLike: t.TypeAlias = "Rule | int | None"


class Excluded:
    """What a resolver gives for a URL that is no page, and passes untouched."""


EXCLUDED: t.Final = Excluded()

Resolver: t.TypeAlias = "Callable[[WSGIEnvironment], Rule | Excluded | None]"


class Rules:
    """Finds the rule of a request; these find none."""

    #: Whether nothing but the URL decides. If not, what one visitor's headers lead to is never
    #: remembered for others.
    by_url = True

    def resolve(self, environ: WSGIEnvironment) -> Rule | Excluded | None:
        return None

    def consider(self, environ: WSGIEnvironment) -> list[str]:
        """Says of each rule whether it matches a request, for `ISRMiddleware.explain`."""
        return []

    def lists(self, environ: WSGIEnvironment) -> bool:
        """Whether a path of ``fallback=False`` exists, though it may not be stored."""
        return False


def make_rules(rules: Mapping[str, RuleLike] | Resolver | Rules | None) -> Rules:
    """The rules of whatever the user handed over.

    :raises TypeError: for what is neither a mapping nor a callable.
    :raises ValueError: for a pattern or a rule that is none.
    """
    if rules is None:
        return Rules()
    if isinstance(rules, Rules):
        return rules
    if isinstance(rules, Mapping):
        return _PatternRules(rules)
    if callable(rules):
        return _CallableRules(rules)
    raise TypeError('rules takes a mapping, as in {"/blog/*": 60}, or a callable(environ)')


def digest_of(rules: object) -> str:
    """Names a mapping of rules, so that pages of other rules count as those of another build."""
    if not isinstance(rules, Mapping) or not rules:
        return ""
    words = repr([(pattern, _words_of(rule)) for pattern, rule in rules.items()])
    return hashlib.sha256(words.encode(errors="backslashreplace")).hexdigest()[:12]


def _words_of(rule: RuleLike) -> object:
    """What a rule says, with a ``repr`` that is the same in every process: no set, no callable."""
    if not isinstance(rule, Rule):
        return rule
    names = map(sorted, (rule.tags, rule.parameters, rule.ignore))
    fallback = rule.fallback is False
    return rule.revalidate, rule.expire, *names, rule.variants, fallback, rule.undeclared


class _PatternRules(Rules):
    def __init__(self, rules: Mapping[str, RuleLike]) -> None:
        self._rules = [
            (key, check_pattern(key), _as_rule(key, rule)) for key, rule in rules.items()
        ]
        for place, (later, _, _) in enumerate(self._rules):
            paths = list(_paths_of(later))
            for first, pattern, _ in self._rules[:place]:
                if all(map(pattern.fullmatch, paths)):
                    logger.warning(
                        "rules[%r] has no effect, because %r stands before it and matches all of "
                        "its paths: put it first",
                        later,
                        first,
                    )
                    break

    def resolve(self, environ: WSGIEnvironment) -> Rule | Excluded | None:
        path = environ.get("PATH_INFO") or "/"
        return next((rule for _, pattern, rule in self._rules if pattern.fullmatch(path)), None)

    def consider(self, environ: WSGIEnvironment) -> list[str]:
        path = environ.get("PATH_INFO") or "/"
        says = {True: "matches", False: "does not match"}
        return [f"{it!r} {says[bool(pattern.fullmatch(path))]}" for it, pattern, _ in self._rules]


def _paths_of(pattern: str) -> Iterator[str]:
    """Paths of a pattern that only wildcards match where it has wildcards."""
    for some in ("", "/", "/\1", "/\1/\2"):
        path = re.sub(r"/\*\*(?=/|\Z)", some, pattern)
        yield to_wsgi(path.replace("*", "\1")) or "/"


def _as_rule(pattern: str, rule: RuleLike) -> Rule | Excluded:
    if rule is None:
        return EXCLUDED
    if isinstance(rule, Rule):
        return rule
    try:
        return Rule(revalidate=rule)
    except ValueError as error:
        raise ValueError(f"rules[{pattern!r}]: {error}") from None


class _CallableRules(Rules):
    by_url = False

    def __init__(self, resolver: Resolver) -> None:
        def resolve(environ: WSGIEnvironment) -> Rule | Excluded | None:
            rule = resolver(environ)
            if rule is not None and not isinstance(rule, Rule | Excluded):
                raise TypeError(f"it returned {rule!r}, which is neither a Rule nor None")
            return rule

        self._resolve: Resolver = guarded("rules", resolve, None)

    def resolve(self, environ: WSGIEnvironment) -> Rule | Excluded | None:
        return self._resolve(environ)


T = t.TypeVar("T")


def guarded(
    name: str, function: Callable[[WSGIEnvironment], T | None], otherwise: T | None
) -> Callable[[WSGIEnvironment], T | None]:
    """A function of the user's that every request asks, and what it gives where it fails."""
    quiet_until = 0.0

    def ask(environ: WSGIEnvironment) -> T | None:
        nonlocal quiet_until
        try:
            return function(environ)
        except Exception:
            if time.monotonic() >= quiet_until:
                quiet_until = time.monotonic() + QUIET
                path = environ.get("PATH_INFO", "")[:200]
                logger.exception("the callable given as %s failed for %r", name, path)
            return otherwise

    return ask
