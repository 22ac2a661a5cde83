"""`revalidate` and its relatives: at once or, in a transaction, when it is committed."""

from __future__ import annotations

import itertools
import logging
import typing as t
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field

from django.db import transaction

from ..ondemand import Result
from ..render import current_origin
from .handler import get_middleware

logger = logging.getLogger("wsgi_isr")

#: What the open transaction of a connection puts off. Only Django refers to these calls, and drops
#: them when the transaction or the savepoint is rolled back.
_pending: weakref.WeakKeyDictionary[t.Any, weakref.WeakSet[_Call]] = weakref.WeakKeyDictionary()
_order = itertools.count()


@dataclass(eq=False)
class _Call:
    """One call that takes effect on commit, with all others of its transaction.

    :param kind: ``"paths"``, ``"tags"`` or ``"patterns"``.
    :param options: what has to be the same for calls to be merged.
    :param calls: all of the transaction.
    """

    kind: str
    names: Sequence[str]
    options: tuple[t.Any, ...]
    raise_errors: bool
    calls: weakref.WeakSet[_Call]
    number: int = field(default_factory=_order.__next__)

    def __call__(self) -> None:
        if self not in self.calls:
            # It took effect with another one.
            return
        # Invalidations before renders, so that a page is rendered after all that was changed.
        calls = sorted(self.calls, key=lambda call: (call.kind == "paths", call.number))
        self.calls.clear()
        merged: dict[tuple[str, tuple[t.Any, ...]], list[str]] = {}
        for call in calls:
            merged.setdefault((call.kind, call.options), []).extend(call.names)
        failure = None
        for (kind, options), names in merged.items():
            names = list(dict.fromkeys(names))
            try:
                _perform(kind, names, *options)
            except Exception as error:
                logger.exception("%s were not revalidated: %s", kind, ", ".join(names)[:1000])
                failure = error
        if failure is not None and any(call.raise_errors for call in calls):
            raise failure


def _perform(
    kind: str, names: Sequence[str], origin: t.Any, option: bool, workers: int | None = None
) -> list[Result] | None:
    middleware = get_middleware()
    on_demand = middleware.on_demand()
    if kind == "paths":
        return on_demand.revalidate(names, option, origin, workers, middleware.is_enabled())
    if kind == "tags":
        on_demand.revalidate_tag(names, option)
    else:
        on_demand.invalidate(names, option, origin)
    return None


def _now_or_later(
    kind: str, names: Sequence[str], using: str | None, raise_errors: bool, *others: t.Any
) -> list[Result] | None:
    # A tag has no origin.
    options = (None if kind == "tags" else current_origin.get(), *others)
    connection = transaction.get_connection(using)
    if connection.connection is None or connection.autocommit:
        return _perform(kind, names, *options)
    paths, tags, patterns = (names if kind == k else () for k in ("paths", "tags", "patterns"))
    get_middleware().on_demand().check(paths, tags, patterns, options[0])
    calls = _pending.setdefault(connection, weakref.WeakSet())
    calls.add(call := _Call(kind, names, options, raise_errors, calls))
    transaction.on_commit(call, using)
    return None


def revalidate(
    *paths: str,
    only_generated: bool = False,
    workers: int | None = None,
    using: str | None = None,
    raise_errors: bool = False,
) -> list[Result] | None:
    """`wsgi_isr.ISRMiddleware.revalidate`, from anywhere.

    In a transaction it takes effect when that is committed, once with all other calls, and not at
    all when it is rolled back; it then returns ``None``.

    :param using: the database whose transaction is waited for; ``None``: the default one.
    :param raise_errors: in a transaction: raise failures from the commit, in place of logging them.
    :raises ValueError: at once, for what is no path.
    :raises django.db.transaction.TransactionManagementError: where autocommit is off outside of
        ``atomic()``: Django then cannot say when something is committed.
    """
    return _now_or_later("paths", paths, using, raise_errors, only_generated, workers)


def revalidate_tag(
    *tags: str, expire: bool = False, using: str | None = None, raise_errors: bool = False
) -> None:
    """`wsgi_isr.ISRMiddleware.revalidate_tag`, from anywhere; on commit, as `revalidate`."""
    _now_or_later("tags", tags, using, raise_errors, expire)


def invalidate(
    *patterns: str, expire: bool = False, using: str | None = None, raise_errors: bool = False
) -> None:
    """`wsgi_isr.ISRMiddleware.invalidate`, from anywhere; on commit, as `revalidate`."""
    _now_or_later("patterns", patterns, using, raise_errors, expire)
