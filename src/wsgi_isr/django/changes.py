"""`revalidate` and its relatives: at once or, in a transaction, when it is committed."""

from __future__ import annotations

import functools
import itertools
import logging
import typing as t
import weakref
from collections.abc import Sequence

from django.db import transaction

from ..ondemand import Result, check_workers
from .handler import get_middleware

logger = logging.getLogger("wsgi_isr")

Calls: t.TypeAlias = "weakref.WeakSet[functools.partial[None]]"

#: What the open transaction of a connection puts off. Only Django refers to these calls, and drops
#: them when the transaction or the savepoint is rolled back.
_pending: weakref.WeakKeyDictionary[t.Any, Calls] = weakref.WeakKeyDictionary()
_order = itertools.count()


def _commit(calls: Calls, *_: object) -> None:
    """Let all calls of a transaction take effect with the first of them."""
    waiting = [call.args[1:] for call in calls]
    calls.clear()
    merged: dict[t.Any, dict[str, None]] = {}
    # Invalidations before renders, so that a page is rendered after all that was changed.
    for _, _, names, *call in sorted(waiting, key=lambda each: each[:2]):
        merged.setdefault(tuple(call), {}).update(dict.fromkeys(names))
    failure = None
    for (method, options, raise_errors), names in merged.items():
        try:
            getattr(get_middleware(), method)(*names, **dict(options))
        except Exception as error:
            logger.exception("%s failed on commit: %s", method, ", ".join(names)[:1000])
            failure = error if raise_errors else failure
    if failure is not None:
        raise failure


def _now_or_later(
    method: str, names: Sequence[str], using: str | None, raise_errors: bool, **options: t.Any
) -> t.Any:
    connection, middleware = transaction.get_connection(using), get_middleware()
    if connection.connection is None or connection.autocommit:
        return getattr(middleware, method)(*names, **options)
    check_workers(options.get("workers"))
    tags, patterns, paths = (
        names if method == each else () for each in ("revalidate_tag", "invalidate", "revalidate")
    )
    middleware.on_demand().check(paths, tags, patterns)
    calls = _pending.setdefault(connection, weakref.WeakSet())
    what = names, method, tuple(options.items()), raise_errors
    call = functools.partial(_commit, calls, method == "revalidate", next(_order), *what)
    calls.add(call)
    transaction.on_commit(call, using)


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
    return _now_or_later("revalidate", paths, using, raise_errors, **options)


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
