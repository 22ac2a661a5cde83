"""What a middleware was told about its app; the same in all processes."""

from __future__ import annotations

import typing as t
from collections.abc import Callable
from dataclasses import dataclass

from .key import canonical_query
from .key import is_ambiguous
from .key import Origin
from .key import Origins
from .key import PageKey
from .respond import Negotiation
from .rules import Resolver
from .rules import Rule

if t.TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication
    from _typeshed.wsgi import WSGIEnvironment


@dataclass
class Site:
    """What a middleware was told about its app, the same in all processes.

    :param bypass: why a request does not get a page, whatever is stored: ``"draft"``,
        ``"disabled"``; ``None`` if it does.
    :param limit: bytes of a body that may be stored.
    :param previous_builds: builds before this one whose pages are served until it has its own.
    :param tags_header: the header in which caches behind us are told a page's tags.
    """

    app: WSGIApplication
    middleware: object
    resolver: Resolver | None
    query: tuple[str, ...]
    origins: Origins
    build_id: str
    limit: int
    clock: Callable[[], float]
    negotiation: Negotiation
    tags_header: str | None = None
    bypass: Callable[[WSGIEnvironment], str | None] | None = None
    previous_builds: int = 0

    def declared_query(self, rule: Rule | None) -> tuple[str, ...]:
        """The query parameters that are part of a page's key."""
        return tuple(rule.query if rule is not None else ()) or self.query

    def key(self, origin: Origin, environ: WSGIEnvironment, rule: Rule | None) -> PageKey:
        return PageKey(
            *origin,
            environ.get("PATH_INFO", ""),
            canonical_query(environ.get("QUERY_STRING", ""), self.declared_query(rule)),
            () if rule is None else rule.vary_of(environ),
            self.build_id,
        )

    def rule_of(self, key: PageKey) -> Rule | None:
        """The rule of a page by its canonical request."""
        if self.resolver is None:
            return None
        return self.resolver(key.to_environ("stale", self.middleware))

    def is_canonical(self, key: PageKey) -> bool:
        """Whether a key may have a page, and is that of its own canonical request.

        A key that comes from elsewhere has to be, so that nobody invents pages, and one that is
        to be told elsewhere.
        """
        origin = Origin(key.scheme, key.host, key.mount)
        try:
            if is_ambiguous(key.path, key.mount):
                return False
            if self.origins.trust(key.scheme, key.host) != key.host:
                return False
            environ = key.to_environ("stale", self.middleware)
            return self.key(origin, environ, self.rule_of(key)) == key
        except ValueError:
            # Text that is no latin-1.
            return False

    def describe(self, origin: Origin, path: str, query_string: str) -> tuple[PageKey, Rule | None]:
        """The key and the rule of a page that is named, not visited."""
        environ = PageKey(*origin, path).to_environ("revalidate", self.middleware)
        environ["QUERY_STRING"] = query_string
        rule = self.resolver(environ) if self.resolver is not None else None
        return self.key(origin, environ, rule), rule
