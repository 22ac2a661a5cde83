"""`revalidate` and its relatives: at once or, in a transaction, when it is committed."""

from __future__ import annotations

import itertools
import logging
import typing as t
import weakref
from collections.abc import Sequence

from django.db import DEFAULT_DB_ALIAS, transaction

from ..key import Origin
from ..ondemand import Result
from ..render import current_origin
from .handler import get_middleware

logger = logging.getLogger("wsgi_isr")

#: What the open transaction of a connection puts off. Only Django refers to these calls, and drops
#: them when the transaction or the savepoint is rolled back.
_pending: weakref.WeakKeyDictionary[t.Any, weakref.WeakSet[_Call]] = weakref.WeakKeyDictionary()
_order = itertools.count()
_KINDS = ("paths", "tags", "patterns")


class _Call:
    """One call that takes effect on commit, with all others of the transaction.

    :param kind: ``"paths"``, ``"tags"`` or ``"patterns"``.
    :param options: what has to be the same for calls to be merged.
    """

    def __init__(
        self,
        kind: str,
        names: Sequence[str],
        options: tuple[t.Any, ...],
        raise_errors: bool,
        calls: weakref.WeakSet[_Call],
    ) -> None:
        self.kind, self.names, self.options = kind, names, options
        self.raise_errors = raise_errors
        self.calls = calls
        self.number = next(_order)
        self.is_done = False

    def __call__(self) -> None:
        # Those of a savepoint that was rolled back are not among them.
        calls = sorted((call for call in self.calls if not call.is_done), key=lambda c: c.number)
        if self.is_done:
            return
        merged: dict[tuple[str, tuple[t.Any, ...]], dict[str, None]] = {}
        # Invalidations before renders, so that a page is rendered after all that was changed.
        for call in sorted(calls, key=lambda call: call.kind == "paths"):
            call.is_done = True
            merged.setdefault((call.kind, call.options), {}).update(dict.fromkeys(call.names))
        failure = None
        for (kind, options), names in merged.items():
            try:
                _perform(kind, tuple(names), options)
            except Exception as error:
                logger.exception("%s were not revalidated: %s", kind, ", ".join(names)[:1000])
                failure = error
        if failure is not None and any(call.raise_errors for call in calls):
            raise failure


def _perform(kind: str, names: Sequence[str], options: tuple[t.Any, ...]) -> list[Result] | None:
    middleware = get_middleware()
    on_demand = middleware.on_demand()
    if kind == "paths":
        only_generated, workers, origin = options
        render = middleware.is_enabled()
        return on_demand.revalidate(names, only_generated, origin, workers, render)
    expire, origin = options
    if kind == "tags":
        on_demand.revalidate_tag(names, expire)
    else:
        on_demand.invalidate(names, expire, origin)
    return None


def _now_or_later(
    kind: str,
    names: Sequence[str],
    options: tuple[t.Any, ...],
    origin: Origin | None,
    using: str | None,
    raise_errors: bool,
) -> list[Result] | None:
    connection = transaction.get_connection(using)
    if not connection.in_atomic_block:
        return _perform(kind, names, (*options, origin))
    paths, tags, patterns = ([*names] if kind == each else [] for each in _KINDS)
    get_middleware().on_demand().check(paths, tags, patterns, origin)
    calls = _pending.setdefault(connection, weakref.WeakSet())
    call = _Call(kind, names, (*options, origin), raise_errors, calls)
    calls.add(call)
    transaction.on_commit(call, using)
    return None


def revalidate(
    *paths: str,
    only_generated: bool = False,
    workers: int | None = None,
    using: str = DEFAULT_DB_ALIAS,
    raise_errors: bool = False,
) -> list[Result] | None:
    """`wsgi_isr.ISRMiddleware.revalidate`, from anywhere.

    In a transaction it takes effect when that is committed, once with all other calls, and not at
    all when it is rolled back; it then returns ``None``.

    :param using: the database whose transaction is waited for.
    :param raise_errors: in a transaction: raise failures from the commit, in place of logging them.
    :raises ValueError: at once, for what is no path.
    """
    options = (only_generated, workers)
    return _now_or_later("paths", paths, options, current_origin.get(), using, raise_errors)


def revalidate_tag(
    *tags: str,
    expire: bool = False,
    using: str = DEFAULT_DB_ALIAS,
    raise_errors: bool = False,
) -> None:
    """`wsgi_isr.ISRMiddleware.revalidate_tag`, from anywhere; on commit, as `revalidate`."""
    _now_or_later("tags", tags, (expire,), None, using, raise_errors)


def invalidate(
    *patterns: str,
    expire: bool = False,
    using: str = DEFAULT_DB_ALIAS,
    raise_errors: bool = False,
) -> None:
    """`wsgi_isr.ISRMiddleware.invalidate`, from anywhere; on commit, as `revalidate`."""
    _now_or_later("patterns", patterns, (expire,), current_origin.get(), using, raise_errors)
