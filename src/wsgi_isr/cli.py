"""The command line: the same commands for every WSGI app and, as ``flask isr``, for Flask.

They act on the store that running workers share, and hold in all of them at once. They do so also
where the app's configuration switches the library off.
"""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
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
from collections.abc import Callable, Iterable, Iterator
from urllib.parse import unquote_to_bytes, urlsplit

import click
from werkzeug.utils import import_string

from .key import Origin, normalize_host
from .metrics import hit_ratio
from .middleware import ISRMiddleware
from .ondemand import Result, called_by
from .report import (
    ORDERS,
    describe,
    explanation_rows,
    first,
    line,
    number,
    overview_tables,
    page_rows,
    printable,
    selector,
    table,
)

#: Where frameworks and middlewares keep the application that they wrap.
_INNER = ("wsgi_app", "app", "application", "__self__")
#: The exit status of a process that SIGINT ended.
INTERRUPTED = 130
#: Seconds between two tables of `stats --watch`.
REFRESH = 2.0


class App(t.NamedTuple):
    """What the commands act on.

    :param paths: gives all paths that can be prerendered, if the app can list them.
    :param origin: where pages are unless an option says so; ``None``: the store can say.
    """

    middleware: ISRMiddleware
    paths: Callable[[], Iterable[str]] | None = None
    origin: Origin | None = None

    def announce(self) -> None:
        """Name the store and the build on standard error, and warn where they may be wrong.

        :raises click.ClickException: for a store that no other process shares.
        """
        store, build = self.middleware.store, self.middleware.build_id
        if store.kind.shared == "process":
            raise click.ClickException(
                "pages are in memory only, and commands cannot reach that of running workers: use "
                "file:///path or a store on the network, and run this as the workers' user"
            )
        _say(f"Store: {store.kind.name}, {_place_of(self.middleware)}; build {build!r}")
        processes, totals = store.processes(), store.totals()
        if others := {str(process.get("build")) for process in processes} - {build}:
            names = ", ".join(sorted(map(repr, others)))
            _say(f"Warning: workers run other builds, {names}: this can only expire their pages")
        if not processes and not any(map(totals.get, ("hits", "stale_hits", "misses", "passed"))):
            _say("Warning: no worker has used this store: is it theirs? are you their user?")

    def place(self, base_url: str | None) -> Origin | None:
        """Where the pages are that a path names.

        :raises click.ClickException: for a host that has no pages.
        """
        if base_url is None:
            return self.origin
        parts = urlsplit(base_url)
        mount = unquote_to_bytes(parts.path.rstrip("/")).decode("latin-1")
        environ = {"wsgi.url_scheme": parts.scheme, "HTTP_HOST": parts.netloc, "SCRIPT_NAME": mount}
        origin = self.middleware.origin_of(environ)
        own = Origin("https", "www.example.com", "") if origin is None else origin
        asked = (parts.scheme, normalize_host(parts.netloc, parts.scheme))
        if own is not origin or asked != own[:2] or parts.query or parts.fragment:
            what = f"scheme and host of this app's pages, as in {own.scheme}://{own.host}"
            raise click.ClickException(f"--base-url takes {what}, not {base_url!r}")
        return origin


def _user() -> str:
    """Who types the command; a container may have no name for them."""
    with contextlib.suppress(Exception):
        return getpass.getuser()
    return f"uid {os.getuid()}"


def _say(text: str) -> None:
    click.echo(printable(text), err=True)


def _place_of(middleware: ISRMiddleware) -> str:
    """Where a store is, without the passwords of a URL."""
    folder, cache = getattr(middleware.store, "folder", None), middleware.cache
    if folder is not None or not isinstance(cache, str):
        return str(folder or type(cache).__name__)
    parts = urlsplit(cache)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


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
            hint = " (here: give --base-url)" if "set base_url" in str(error) else ""
            raise click.ClickException(f"{describe(error)}{hint}") from error
        finally:
            # The store is to have what was counted, and not to count this process as a worker.
            ctx.obj.middleware.close(0)


#: Its commands are those of ``flask isr`` and ``python -m wsgi_isr MODULE:APP``.
group = click.Group()
pass_app = click.make_pass_decorator(App)
at_least_one = click.IntRange(1)
workers = click.option("--workers", type=at_least_one, metavar="N", help="Renders at a time.")
base_url = click.option("--base-url", metavar="URL", help="Where the pages are, as in the config.")
as_json = click.option("--json", "as_json", is_flag=True, help="For programs.")
tags = click.option("--tag", "tags", multiple=True, metavar="T", help="Pages that have a tag.")


def _read_paths(paths: Iterable[str]) -> list[str]:
    """Paths from arguments and, for ``-``, from standard input; each once."""
    lines = itertools.chain.from_iterable(sys.stdin if p == "-" else [p] for p in paths)
    return [path for path in dict.fromkeys(map(str.strip, lines)) if path]


def _list_paths(paths: Callable[[], Iterable[str]]) -> list[str]:
    """All paths that an app lists; its warnings are for those who type the command."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        found = list(dict.fromkeys(paths()))
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
                    click.echo("\n" * has_bar + line(result))
                paths.add(path)
        status = int(outcomes["failed"] > 0)
    except KeyboardInterrupt:
        status = INTERRUPTED
        click.echo(f"Interrupted after {len(paths):,} of {number(total, 'path')}.")
    counts = ", ".join(f"{outcomes[name]:,} {name}" for name in sorted(outcomes, reverse=True))
    seconds = time.monotonic() - began
    click.echo(f"{number(outcomes.total(), 'page')} in {seconds:.1f} s: {counts or 'none'}")
    raise click.exceptions.Exit(status)


@group.command(cls=Command)
@click.argument("paths", nargs=-1)
@workers
@base_url
@pass_app
def prerender(app: App, paths: tuple[str, ...], workers: int | None, base_url: str | None) -> None:
    """Render PATHS ahead of their visitors, but for pages that are fresh.

    "-" reads paths from standard input, one a line. Without PATHS: all that the app's generators
    list. Whole URLs are paths, too.
    """
    if not paths and app.paths is None:
        raise click.UsageError("name paths, or - to read them from standard input")
    origin = app.place(base_url)
    todo = _read_paths(paths) if paths or app.paths is None else _list_paths(app.paths)
    on_demand = app.middleware.on_demand()
    results = ((r.url, r) for r in on_demand.prerender(todo, workers, origin))
    _follow(results, len(todo), "Prerendering")


@group.command(cls=Command)
@click.argument("paths", nargs=-1, required=True)
@click.option("--only-generated", is_flag=True, help="Skip paths that have no page.")
@workers
@base_url
@pass_app
def revalidate(
    app: App,
    paths: tuple[str, ...],
    only_generated: bool,
    workers: int | None,
    base_url: str | None,
) -> None:
    """Render PATHS now and store them.

    Every later visitor gets a page whose render began after this. "-" reads paths from standard
    input, one a line.
    """
    todo = _read_paths(paths)
    results = app.middleware.on_demand().each(todo, only_generated, app.place(base_url), workers)
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
    on_demand = app.middleware.on_demand()
    # First, so that a mistake in the last one invalidates nothing.
    on_demand.check((), tags, patterns, app.origin)
    on_demand.revalidate_tag(tags, expire)
    on_demand.invalidate(patterns, expire, app.origin)
    names = [*(f"tag {tag}" for tag in tags), *patterns]
    click.echo(f"{'Expired' if expire else 'Stale'}: {', '.join(names)}")
    with contextlib.suppress(NotImplementedError):
        count = sum(map(selector(tags, patterns), app.middleware.pages()))
        click.echo(f"{number(count, 'page')} of this build")


@group.command(name="list", cls=Command)
@click.option("--failed", is_flag=True, help="Pages whose last render failed.")
@click.option("--stale", is_flag=True, help="Pages that are stale or expired.")
@tags
@click.option("--match", "patterns", multiple=True, metavar="P", help="As in invalidate.")
@click.option(
    "--sort", type=click.Choice(list(ORDERS)), default="url", help="use: what makes room first."
)
@click.option("--limit", type=at_least_one, metavar="N", help="The first N.")
@as_json
@pass_app
def list_pages(app: App, /, sort: str, limit: int | None, as_json: bool, **which: t.Any) -> None:
    """List what is stored of this build.

    --sort begins with the oldest, largest or slowest, or with those that make room first.
    """
    found = first(filter(selector(**which), app.middleware.pages()), sort, limit)
    if as_json:
        click.echo(json.dumps([page._asdict() for page in found], indent=1))
        return
    table(page_rows(found))


@group.command(cls=Command)
@click.option("--watch", is_flag=True, help="Again every two seconds, until Ctrl-C.")
@as_json
@pass_app
def stats(app: App, watch: bool, as_json: bool) -> None:
    """Show what all workers have counted, what each has now, and the last calls on demand."""
    on_demand = app.middleware.on_demand()
    while True:
        found = on_demand.overview() | {"calls": on_demand.journal()}
        if watch and sys.stdout.isatty():
            click.clear()
        if as_json:
            counts = found.pop("stats")
            whole = counts | {"hit_ratio": hit_ratio(counts)} | found
            # In a watch each is one line, for programs that read lines.
            click.echo(json.dumps(whole, indent=None if watch else 1))
        else:
            for rows in overview_tables(found):
                table(rows)
                click.echo()
        if not watch:
            return
        time.sleep(REFRESH)


@group.command(cls=Command)
@click.argument("url")
@click.option("--cookie", "cookies", multiple=True, metavar="NAME=VALUE", help="Of a visitor.")
@click.option("--header", "headers", multiple=True, metavar="NAME:VALUE", help="Of a visitor.")
@base_url
@as_json
@pass_app
def explain(
    app: App,
    url: str,
    cookies: tuple[str, ...],
    headers: tuple[str, ...],
    base_url: str | None,
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
    found = app.middleware.on_demand().explain(url, app.place(base_url), given)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(found), indent=1))
        return
    table(explanation_rows(found))


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
        click.echo(f"Removed: {number(app.middleware.prune(everything=True), 'page')}")
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
    click.echo(f"Removed: {number(app.middleware.prune(**bounds), 'page')}")


@click.group(commands=group.commands)
@click.argument("app", metavar="MODULE:APP")
@click.pass_context
def main(context: click.Context, app: str) -> None:
    """Act on the pages of an app.

    MODULE:APP is an ISRMiddleware, or has one as its wsgi_app, as in "wsgi:app" or
    "wsgi:create_app()".
    """
    context.obj = load(app)


def load(name: str) -> App:
    """
    :raises click.ClickException: where there is no such app, or no middleware in it.
    """
    # As for servers: an app in the working directory needs no installation.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = import_string(name.removesuffix("()"))
    except ImportError as error:
        raise click.ClickException(
            f"the app is named MODULE:APP, as in 'wsgi:app' or 'wsgi:create_app()': {error}"
        ) from error
    if name.endswith("()"):
        found = found()
    middleware, app = None, found
    for _ in range(20):
        # A framework's extension, which can say more.
        extensions = getattr(app, "extensions", None)
        extension: t.Any = extensions.get("isr") if isinstance(extensions, dict) else None
        if hasattr(extension, "cli_app"):
            return t.cast(App, extension.cli_app(app))
        if middleware is None and isinstance(app, ISRMiddleware):
            middleware = app
        app = next(filter(None, (getattr(app, name, None) for name in _INNER)), None)
    if middleware is not None:
        return App(middleware)
    hint = f"; if it is a factory, write '{name}()'" if callable(found) else ""
    raise click.ClickException(f"{name!r} is not an ISRMiddleware and has none inside{hint}")
