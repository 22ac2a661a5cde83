"""`revalidate` and its relatives: at once or, in a transaction, when it is committed."""

from __future__ import annotations

import functools
import itertools
import logging
import typing as t
import weakref
from collections.abc import Sequence

from django.db import transaction

from ..ondemand import Result
from .handler import get_middleware

logger = logging.getLogger("wsgi_isr")

Calls: t.TypeAlias = "weakref.WeakSet[functools.partial[None]]"

#: What the open transaction of a connection puts off. Only Django refers to these calls, and drops
#: them when the transaction or the savepoint is rolled back.
_pending: weakref.WeakKeyDictionary[t.Any, Calls] = weakref.WeakKeyDictionary()
_order = itertools.count()
_METHODS = ("revalidate_tag", "invalidate", "revalidate")


def _commit(calls: Calls, *_: object) -> None:
    """Let all calls of a transaction take effect with the first of them."""
    # Invalidations before renders, so that a page is rendered after all that was changed.
    waiting = sorted(call.args[1:] for call in calls)
    calls.clear()
    merged: dict[t.Any, dict[str, None]] = {}
    for _, _, method, names, options, _ in waiting:
        merged.setdefault((method, options), {}).update(dict.fromkeys(names))
    failure = None
    for (method, options), names in merged.items():
        try:
            getattr(get_middleware(), method)(*names, **dict(options))
        except Exception as error:
            logger.exception("%s failed on commit: %s", method, ", ".join(names)[:1000])
            failure = error
    if failure is not None and any(raise_errors for *_, raise_errors in waiting):
        raise failure


def _now_or_later(
    method: str, names: Sequence[str], using: str | None, raise_errors: bool, **options: t.Any
) -> t.Any:
    connection, middleware = transaction.get_connection(using), get_middleware()
    if connection.connection is None or connection.autocommit:
        return getattr(middleware, method)(*names, **options)
    tags, patterns, paths = (names if each == method else () for each in _METHODS)
    middleware.on_demand().check(paths, tags, patterns)
    calls = _pending.setdefault(connection, weakref.WeakSet())
    order = (method == "revalidate", next(_order))
    call = functools.partial(
        _commit, calls, *order, method, names, (*options.items(),), raise_errors
    )
    calls.add(call)
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
    options: dict[str, t.Any] = {"only_generated": only_generated, "workers": workers}
    results: list[Result] | None
    results = _now_or_later("revalidate", paths, using, raise_errors, **options)
    return results


def revalidate_tag(
    *tags: str, expire: bool = False, using: str | None = None, raise_errors: bool = False
) -> None:
    """`wsgi_isr.ISRMiddleware.revalidate_tag`, from anywhere; on commit, as `revalidate`."""
    _now_or_later("revalidate_tag", tags, using, raise_errors, expire=expire)


def invalidate(
    *patterns: str, expire: bool = False, using: str | None = None, raise_errors: bool = False
) -> None:
    """`wsgi_isr.ISRMiddleware.invalidate`, from anywhere; on commit, as `revalidate`."""
    _now_or_later("invalidate", patterns, using, raise_errors, expire=expire)
