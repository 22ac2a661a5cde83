"""The command line: the same commands for every WSGI app and, as ``flask isr``, for Flask.

They act on the store that running workers share, and hold in all of them at once. They do so also
where the app's configuration switches the library off.
"""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
import heapq
import itertools
import json
import os
import signal
import sys
import threading
import time
import typing as t
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from urllib.parse import urlsplit

import click

from . import listing
from .explain import explanation_rows
from .key import Origin, Origins
from .metrics import hit_ratio
from .middleware import ISRMiddleware
from .ondemand import Result, called_by, describe

#: The exit status of a process that SIGINT ended.
INTERRUPTED = 130
#: Seconds between two tables of `stats --watch`.
REFRESH = 2.0
#: On-demand calls that `stats` shows.
MAX_CALLS = 10


class App(t.NamedTuple):
    """What the commands act on.

    :param paths: gives all paths that can be prerendered there, if the app can list them.
    :param origin: where pages are unless an option says so; ``None``: the store can say.
    """

    middleware: ISRMiddleware
    paths: Callable[[Origin | None], Iterable[str]] | None = None
    origin: Origin | None = None

    def announce(self) -> None:
        """Name the store and the build on standard error, and warn where they may be wrong.

        :raises click.ClickException: for a store that no other process shares.
        """
        store, build, cache = self.middleware.store, self.middleware.build_id, self.middleware.cache
        if store.kind.shared == "process":
            raise click.ClickException(
                "pages are in memory only, and commands cannot reach that of running workers: use "
                "file:///path or a store on the network, and run this as the workers' user"
            )
        place = getattr(store, "folder", None) or type(cache).__name__
        if place == "str":
            # Without the passwords of a URL.
            parts = urlsplit(str(cache))
            place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        _say(f"Store: {store.kind.name}, {place}; build {build!r}")
        processes, totals = store.processes(), store.totals()
        if others := {str(process.get("build")) for process in processes} - {build}:
            names = ", ".join(sorted(map(repr, others)))
            _say(f"Warning: workers run other builds, {names}: this can only expire their pages")
        if not processes and not any(map(totals.get, ("hits", "stale_hits", "misses", "passed"))):
            _say("Warning: no worker has used this store: is it theirs? are you their user?")


def _user() -> str:
    """Who types the command; a container may have no name for them."""
    with contextlib.suppress(Exception):
        return getpass.getuser()
    return f"uid {os.getuid()}"


def _say(text: str) -> None:
    click.echo(listing.printable(text), err=True)


def _show(
    data: object, *tables: Iterable[Sequence[str]], as_json: bool, indent: int | None = 1
) -> None:
    """Print data for programs, or aligned tables."""
    if as_json:
        click.echo(json.dumps(data, indent=indent))
        return
    for index, rows in enumerate(tables):
        cells = [[*map(listing.printable, row)] for row in rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        click.echo("\n" if index else "", nl=False)
        for row in cells:
            click.echo("  ".join(map(str.ljust, row, widths)).rstrip())


class Command(click.Command):
    """A command whose errors are read without a traceback, and that Ctrl-C ends with 130."""

    def invoke(self, ctx: click.Context) -> t.Any:
        try:
            ctx.obj.announce()
            with called_by(f"isr {ctx.info_name} ({_user()})"):
                return super().invoke(ctx)
        except KeyboardInterrupt:
            _say("Interrupted.")
            ctx.exit(INTERRUPTED)
        except (BrokenPipeError, click.ClickException, click.exceptions.Exit):
            # click knows what to do when a pager is closed.
            raise
        except Exception as error:
            # Each store's client has errors of its own.
            raise click.ClickException(describe(error)) from error
        finally:
            # The store is to have what was counted, and not to count this process as a worker.
            ctx.obj.middleware.close(0)


def _origin_at(context: click.Context, option: object, base_url: str | None) -> Origin | None:
    """Where a path names a page: under the base URL, or else where the app says."""
    app = context.find_object(App)
    if app is None or base_url is None:
        # There is no app while a shell completes a line.
        return None if app is None else app.origin
    try:
        asked = t.cast(Origin, Origins(base_url, None).base)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    origin = app.middleware.origin_of(asked.to_environ())
    if origin is None or origin[:2] != asked[:2]:
        own = f": they are on {origin.scheme}://{origin.host}" if origin else ""
        raise click.BadParameter(f"{base_url!r} has no pages of this app{own}")
    return origin


#: Its commands are those of ``flask isr`` and ``python -m wsgi_isr MODULE:APP``.
group = click.Group()
pass_app = click.make_pass_decorator(App)
at_least_one = click.IntRange(1)
workers = click.option("--workers", type=at_least_one, metavar="N", help="Renders at a time.")
origin = click.option(
    "--base-url",
    "origin",
    metavar="URL",
    callback=_origin_at,
    help="Where the pages are, as in the config.",
)
as_json = click.option("--json", "as_json", is_flag=True, help="For programs.")
tags = click.option("--tag", "tags", multiple=True, metavar="T", help="Pages that have a tag.")


def _read_paths(paths: Iterable[str]) -> list[str]:
    """Paths from arguments and, for ``-``, from standard input; each once."""
    lines = itertools.chain.from_iterable(sys.stdin if p == "-" else [p] for p in paths)
    return [path for path in dict.fromkeys(map(str.strip, lines)) if path]


def _list_paths(paths: Iterable[str]) -> list[str]:
    """Paths that an app lists, each once; its warnings are for those who type the command."""
    with warnings.catch_warnings(record=True, action="always", category=UserWarning) as caught:
        found = list(dict.fromkeys(paths))
    for warning in caught:
        _say(f"Warning: {warning.message}")
    return found


def _follow(results: Iterator[tuple[str, Result]], total: int, label: str) -> t.NoReturn:
    """Show results as they come and end the command; Ctrl-C ends it early, and loses nothing."""
    began, outcomes, paths = time.monotonic(), Counter[str](), set[str]()
    has_bar = total > 0 and sys.stdout.isatty()
    bar: t.Any = click.progressbar(length=total, label=label, show_pos=True)
    try:
        # Renders that have begun are waited for when the iterator is closed.
        with (
            contextlib.closing(t.cast("t.Any", results)),
            bar if has_bar else contextlib.nullcontext(),
        ):
            for path, result in results:
                outcomes[result.outcome] += 1
                if has_bar and path not in paths:
                    bar.update(1)
                if not has_bar or result.error is not None:
                    status = "" if result.status is None else f" {result.status}"
                    why = "" if result.error is None else f": {describe(result.error)}"
                    line = listing.printable(f"{result.outcome}{status} {result.url}{why}")
                    click.echo("\n" * has_bar + line)
                paths.add(path)
        code = int(outcomes["failed"] > 0)
    except KeyboardInterrupt:
        code = INTERRUPTED
        click.echo(f"Interrupted after {len(paths):,} of {listing.number(total, 'path')}.")
    counts = ", ".join(f"{outcomes[name]:,} {name}" for name in sorted(outcomes, reverse=True))
    seconds = time.monotonic() - began
    click.echo(f"{listing.number(outcomes.total(), 'page')} in {seconds:.1f} s: {counts or 'none'}")
    raise click.exceptions.Exit(code)


@group.command(cls=Command)
@click.argument("paths", nargs=-1)
@workers
@origin
@pass_app
def prerender(app: App, paths: tuple[str, ...], workers: int | None, origin: Origin | None) -> None:
    """Render PATHS ahead of their visitors, but for pages that are fresh.

    "-" reads paths from standard input, one a line. Without PATHS: all that the app's generators
    list, but for what a rule of None excludes. Whole URLs are paths, too.
    """
    if not paths and app.paths is None:
        raise click.UsageError("name paths, or - to read them from standard input")
    todo = _list_paths(app.paths(origin)) if app.paths and not paths else _read_paths(paths)
    results = app.middleware.on_demand(origin).prerender(todo, workers, is_listed=not paths)
    _follow(((result.url, result) for result in results), len(todo), "Prerendering")


@group.command(cls=Command)
@click.argument("paths", nargs=-1, required=True)
@click.option("--only-generated", is_flag=True, help="Skip paths that have no page.")
@workers
@origin
@pass_app
def revalidate(
    app: App,
    paths: tuple[str, ...],
    only_generated: bool,
    workers: int | None,
    origin: Origin | None,
) -> None:
    """Render PATHS now and store them.

    Every later visitor gets a page whose render began after this. "-" reads paths from standard
    input, one a line.
    """
    todo = _read_paths(paths)
    results = app.middleware.on_demand(origin).each(todo, only_generated, workers)
    _follow(results, len(todo), "Revalidating")


@group.command(cls=Command)
@click.argument("patterns", nargs=-1)
@tags
@click.option("--expire", is_flag=True, help="The next visitor waits for a new page.")
@pass_app
def invalidate(app: App, patterns: tuple[str, ...], tags: tuple[str, ...], expire: bool) -> None:
    """Make pages stale whose path matches one of PATTERNS, or that have a tag.

    In a pattern * is one segment of a path and ** any number. Nothing is rendered: the next
    visitor of each page gets the old one, and starts a render.
    """
    if not patterns and not tags:
        raise click.UsageError("name patterns, as in '/blog/*', or a --tag")
    app.middleware.on_demand(app.origin).invalidate(patterns, expire, tags)
    names = [*(f"tag {tag}" for tag in tags), *patterns]
    click.echo(f"{'Expired' if expire else 'Stale'}: {', '.join(names)}")
    with contextlib.suppress(NotImplementedError):
        chosen = [listing.selector([tag], ()) for tag in tags]
        chosen += [listing.selector((), [pattern]) for pattern in patterns]
        count = sum(any(which(page) for which in chosen) for page in app.middleware.pages())
        click.echo(f"{listing.number(count, 'page')} of this build")


@group.command(name="list", cls=Command)
@click.option("--failed", is_flag=True, help="Pages whose last render failed.")
@click.option("--stale", is_flag=True, help="Pages that are stale or expired.")
@tags
@click.option("--match", "patterns", multiple=True, metavar="P", help="As in invalidate.")
@click.option(
    "--sort",
    type=click.Choice(list(listing.ORDERS)),
    default="url",
    help="use: what makes room first.",
)
@click.option("--limit", type=at_least_one, metavar="N", help="The first N.", default=sys.maxsize)
@as_json
@pass_app
def list_pages(app: App, /, sort: str, limit: int, as_json: bool, **which: t.Any) -> None:
    """List what is stored of this build.

    --sort begins with the oldest, largest or slowest, or with those that make room first.
    """
    # No more than that many are kept meanwhile.
    pages = filter(listing.selector(**which), app.middleware.pages())
    found = heapq.nsmallest(limit, pages, key=listing.ORDERS[sort])
    _show([page._asdict() for page in found], listing.page_rows(found), as_json=as_json)


@group.command(cls=Command)
@click.option("--watch", is_flag=True, help="Again every two seconds, until Ctrl-C.")
@as_json
@pass_app
def stats(app: App, watch: bool, as_json: bool) -> None:
    """Show what all workers have counted, what each has now, and the last calls on demand."""
    on_demand = app.middleware.on_demand()
    while True:
        found, calls = on_demand.overview(), on_demand.journal()
        if watch and sys.stdout.isatty():
            click.clear()
        counts = found["stats"]
        data = counts | {"hit_ratio": hit_ratio(counts)} | found | {"calls": calls}
        del data["stats"]
        tables = [listing.totals_rows(found)]
        tables += [listing.worker_rows(found["workers"])] if found["workers"] else []
        tables += [listing.call_rows(calls[:MAX_CALLS])] if calls else []
        # In a watch each is one line, for programs that read lines.
        _show(data, *tables, as_json=as_json, indent=None if watch else 1)
        if not watch:
            return
        time.sleep(REFRESH)


@group.command(cls=Command)
@click.argument("url")
@click.option("--cookie", "cookies", multiple=True, metavar="NAME=VALUE", help="Of a visitor.")
@click.option("--header", "headers", multiple=True, metavar="NAME:VALUE", help="Of a visitor.")
@origin
@as_json
@pass_app
def explain(
    app: App,
    url: str,
    cookies: tuple[str, ...],
    headers: tuple[str, ...],
    origin: Origin | None,
    as_json: bool,
) -> None:
    """Say what would happen to a request for URL, and why.

    With cookies and headers, such as "Accept-Language: de": for a visitor who has them.
    """
    given = [("Cookie", "; ".join(cookies))] if cookies else []
    for header in headers:
        name, colon, value = header.partition(":")
        if not name or not colon:
            raise click.UsageError(f"a header is NAME:VALUE, as in 'Accept-Language: de': {header}")
        given.append((name.strip(), value.strip()))
    found = app.middleware.on_demand(origin).explain(url, given)
    _show(dataclasses.asdict(found), explanation_rows(found), as_json=as_json)


@group.command(cls=Command)
@workers
@pass_app
def regenerate(app: App, workers: int | None) -> None:
    """Render the stale pages that web workers hand over, until SIGTERM or Ctrl-C.

    Web workers hand them over where the app has workers=0 (ISR_WORKERS). Start as many of these
    as there are cores for renders.
    """
    if app.middleware.workers:
        _say("Warning: web workers render stale pages themselves, unless they have workers=0")
    stop = threading.Event()

    def end(number: int, frame: object) -> None:
        stop.set()
        # A second one ends it at once.
        signal.signal(number, signal.SIG_DFL)

    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, end)
    _say("Regenerating what web workers hand over.")
    app.middleware.regenerate(stop, workers)


@group.command(cls=Command)
@pass_app
def clear(app: App) -> None:
    """Remove all pages of the site, of whatever build; running workers drop theirs, too."""
    try:
        click.echo(f"Removed: {listing.number(app.middleware.prune(everything=True), 'page')}")
    except NotImplementedError as error:
        click.echo(f"Expired: all pages. None is removed: {error}")


@group.command(cls=Command)
@click.option("--keep-builds", type=at_least_one, metavar="N", help="This one and those before.")
@click.option("--max-pages", type=at_least_one, metavar="N", help="As in the cache URL.")
@click.option("--max-bytes", type=at_least_one, metavar="N", help="As in the cache URL.")
@pass_app
def prune(app: App, /, **bounds: t.Any) -> None:
    """Remove the pages used least, until the others are within the bounds.

    Running workers do the same by themselves. Pages that are gone (404) go first.
    """
    click.echo(f"Removed: {listing.number(app.middleware.prune(**bounds), 'page')}")
