"""The command line: the same commands for every WSGI app and, as ``flask isr``, for Flask.

They act on the store that running workers share, and hold in all of them at once. They do so
also where the library is switched off by the app's configuration: whoever types a command means
it.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import threading
import typing as t
import warnings
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator

import click

from .dedicated import Regenerator
from .loading import App
from .loading import load
from .ondemand import Result
from .ondemand import RevalidationError
from .pool import WorkerPool
from .report import amount
from .report import number
from .report import page_rows
from .report import Report
from .report import table
from .report import worker_rows
from .rules import compile_pattern
from .store.bounds import Bounds
from .store.coordination import StoreError
from .store.prune import Pruner

#: Seconds for renders that have begun when `regenerate` is ended.
FINISHING = 10.0
#: As of a process that SIGINT ended.
INTERRUPTED = 130


class Command(click.Command):
    """A command that Ctrl-C ends as it ends other programs; click alone would exit with 1."""

    def invoke(self, ctx: click.Context) -> t.Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            ctx.exit(INTERRUPTED)


pass_app = click.make_pass_decorator(App)
base_url_option = click.option(
    "--base-url",
    metavar="URL",
    help="Scheme and host of the pages, with the mount point if there is one.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="For programs.")


@contextlib.contextmanager
def _told(where: str = "") -> Iterator[None]:
    """Let errors of the one who typed the command, or of the store, be read without a traceback.

    :param where: how to say on the command line where pages are.
    """
    try:
        yield
    except (BrokenPipeError, click.ClickException):
        # click knows what to do when a pager is closed.
        raise
    except (ValueError, NotImplementedError, StoreError, RevalidationError) as error:
        hint = where if "base_url" in str(error) else ""
        raise click.ClickException(f"{error}{hint}") from error
    except Exception as error:
        # Each store's client has errors of its own.
        raise click.ClickException(f"{type(error).__name__}: {error}") from error


def _read_paths(paths: Iterable[str]) -> list[str]:
    """Paths from arguments and, for ``-``, from standard input; each once."""
    found: dict[str, None] = {}
    for path in paths:
        lines = sys.stdin if path == "-" else [path]
        found.update(dict.fromkeys(line.strip() for line in lines))
    found.pop("", None)
    return list(found)


def _list_paths(paths: Callable[[], Iterable[str]]) -> list[str]:
    """All paths that an app lists; its warnings are for whoever typed the command."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        found = list(dict.fromkeys(paths()))
    for warning in caught:
        click.echo(f"Warning: {warning.message}", err=True)
    return found


def _follow(results: Iterator[tuple[str, Result]], total: int, label: str) -> t.NoReturn:
    """Show results as they come and end the command; Ctrl-C ends it early, and loses nothing."""
    report = Report(total)
    interrupted = False
    bar: t.Any = None
    if total and sys.stdout.isatty():
        bar = click.progressbar(length=total, label=label, show_pos=True)
    with contextlib.ExitStack() as stack:
        try:
            # Renders that have begun are waited for when the iterator is closed.
            stack.enter_context(contextlib.closing(t.cast("t.Any", results)))
            if bar is not None:
                stack.enter_context(bar)
            for path, result in results:
                new = report.add(path, result)
                if bar is None:
                    click.echo(report.line(result))
                elif new:
                    bar.update(1)
        except KeyboardInterrupt:
            interrupted = True
    for line in report.summary(interrupted):
        click.echo(line)
    sys.exit(INTERRUPTED if interrupted else int(report.failed))


@click.command(cls=Command)
@click.argument("paths", nargs=-1)
@click.option("--workers", type=click.IntRange(1), metavar="N", help="Renders at a time.")
@base_url_option
@pass_app
def prerender(app: App, paths: tuple[str, ...], workers: int | None, base_url: str | None) -> None:
    """Render PATHS ahead of their visitors, but for pages that are fresh.

    "-" reads paths from standard input, one a line. Without PATHS: all that the app's generators
    list. Whole URLs are paths, too.
    """
    if not paths and app.paths is None:
        raise click.UsageError("name paths, or - to read them from standard input")
    app.open()
    origin = app.origin(base_url)
    todo = _read_paths(paths) if paths or app.paths is None else _list_paths(app.paths)
    if origin is None and app.middleware.origin_of(_NO_HOST) is None:
        for path in todo:
            if "://" not in path:
                raise click.ClickException(
                    f"no host is known for {path!r}: give --base-url, or whole URLs, "
                    "or set base_url"
                )
    ondemand = app.middleware._on_demand()
    results = ondemand.prerender(todo, workers or app.middleware._workers, origin)
    _follow(_with_urls(results), len(todo), "Prerendering")


#: A request that has an origin only where ``base_url`` is set.
_NO_HOST: dict[str, t.Any] = {"wsgi.url_scheme": "http", "HTTP_HOST": "", "SCRIPT_NAME": ""}


def _with_urls(results: Iterator[Result]) -> Iterator[tuple[str, Result]]:
    with contextlib.closing(t.cast("t.Any", results)):
        for result in results:
            yield result.url, result


@click.command(cls=Command)
@click.argument("paths", nargs=-1, required=True)
@click.option("--only-generated", is_flag=True, help="Skip paths that have no page.")
@base_url_option
@pass_app
def revalidate(
    app: App, paths: tuple[str, ...], only_generated: bool, base_url: str | None
) -> None:
    """Render PATHS now and store them.

    Every later visitor gets a page whose render began after this. "-" reads paths from standard
    input, one a line.
    """
    app.open()
    origin = app.origin(base_url)
    todo = _read_paths(paths)
    ondemand = app.middleware._on_demand()
    with _told(" (here: give --base-url)"):
        results = ondemand.each(todo, only_generated, origin, app.middleware)
        _follow(results, len(todo), "Revalidating")


@click.command(cls=Command)
@click.argument("patterns", nargs=-1)
@click.option("--tag", "tags", multiple=True, metavar="T", help="Pages that have a tag.")
@click.option("--expire", is_flag=True, help="The next visitor waits for a new page.")
@pass_app
def invalidate(app: App, patterns: tuple[str, ...], tags: tuple[str, ...], expire: bool) -> None:
    """Make pages stale whose path matches one of PATTERNS, or that have a tag.

    In a pattern * is one segment of a path and ** any number. Nothing is rendered: the next
    visitor of each page gets the old one, and starts a render.
    """
    if not patterns and not tags:
        raise click.UsageError("name patterns, as in '/blog/*', or a --tag")
    store = app.open()
    with _told():
        # First, so that a mistake in the last one marks nothing.
        app.middleware._on_demand().check((), tags, patterns, None)
        app.middleware.revalidate_tag(*tags, expire=expire)
        app.middleware.invalidate(*patterns, expire=expire)
    names = [*(f"tag {tag}" for tag in tags), *patterns]
    click.echo(f"{'Expired' if expire else 'Stale'}: {', '.join(names)}")
    if store.pruner is not None:
        # The marks hold by now, however long this takes.
        known = _count(store.pruner, app.middleware._site.build_id, tags, patterns)
        click.echo(f"{number(known, 'page')} known")


def _count(pruner: Pruner, build: str, tags: tuple[str, ...], patterns: tuple[str, ...]) -> int:
    """How many pages of a build have one of the tags or paths."""
    wanted = set(tags)
    compiled = [compile_pattern(pattern) for pattern in patterns]
    count = 0
    for head in pruner.heads():
        with contextlib.suppress(LookupError, TypeError, ValueError):
            _, _, mount, path, _, _, its_build = head["key"]
            if its_build == build:
                full_path = (mount + path) or "/"
                count += not wanted.isdisjoint(head["metadata"][2]) or any(
                    pattern.fullmatch(full_path) for pattern in compiled
                )
    return count


@click.command(name="list", cls=Command)
@json_option
@pass_app
def list_pages(app: App, as_json: bool) -> None:
    """List what is stored of this build."""
    app.open()
    with _told():
        if as_json:
            _echo_array(page._asdict() for page in app.middleware.pages())
            return
        rows = page_rows(app.middleware.pages())
    for line in table(rows):
        click.echo(line)


@click.command(cls=Command)
@json_option
@pass_app
def stats(app: App, as_json: bool) -> None:
    """Show the counters of all running workers, as each left them a moment ago."""
    if not app.open().keeps_stats:
        raise click.ClickException("this store keeps no counters of its workers")
    with _told():
        workers = app.middleware.all_stats()
    if as_json:
        _echo_array(workers)
    elif not workers:
        click.echo("No worker is running, or none has had a visitor.")
    else:
        for line in table(worker_rows(workers)):
            click.echo(line)


def _echo_array(items: Iterable[object]) -> None:
    """A JSON array with an item a line, written as it is made."""
    start = "["
    for item in items:
        click.echo(f"{start}\n{json.dumps(item)}", nl=False)
        start = ","
    click.echo("[]" if start == "[" else "\n]")


@click.command(cls=Command)
@click.option("--workers", type=click.IntRange(1), metavar="N", help="Renders at a time.")
@pass_app
def regenerate(app: App, workers: int | None) -> None:
    """Render the stale pages that web workers hand over, until SIGTERM or Ctrl-C.

    Web workers hand them over where the app has workers=0 (ISR_WORKERS). Start as many of these
    as there are cores for renders.
    """
    app.open()
    process = app.middleware._here()
    if process.line is None:
        raise click.ClickException("this store cannot hand over pages: files and Redis can")
    if not app.middleware._is_dedicated:
        click.echo("Warning: web workers render themselves, unless they have workers=0", err=True)
    stop = threading.Event()

    def end(number: int, frame: object) -> None:
        stop.set()
        # A second one ends it at once.
        signal.signal(number, signal.SIG_DFL)

    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, end)
    patience = app.middleware._render_timeout
    pool = WorkerPool(workers or app.middleware._workers, patience)
    process.line.serve()
    click.echo("Regenerating what web workers hand over.")
    Regenerator(process.line, app.middleware._regenerate, pool, patience).run(stop)
    # What has begun is finished, if that does not take long; the old page stays otherwise.
    pool.wait(FINISHING)


@click.command(cls=Command)
@pass_app
def clear(app: App) -> None:
    """Remove all pages of the site, of whatever build.

    Running workers drop what they have in memory, too.
    """
    store = app.open()
    with _told():
        try:
            click.echo(f"Removed: {number(store.clear(), 'page')}")
        except NotImplementedError as error:
            click.echo(f"Expired: all pages. None is removed: {error}")


@click.command(cls=Command)
@click.option(
    "--keep-builds",
    type=click.IntRange(1),
    metavar="N",
    help="Keep this build and the others used last, N in all.",
)
@click.option("--max-pages", type=click.IntRange(1), metavar="N", help="As in the cache URL.")
@click.option("--max-bytes", type=click.IntRange(1), metavar="N", help="As in the cache URL.")
@pass_app
def prune(app: App, keep_builds: int | None, max_pages: int | None, max_bytes: int | None) -> None:
    """Remove the pages used least, until the others are within the bounds.

    Running workers do the same by themselves. Pages that are gone (404) go first.
    """
    pruner = app.open().pruner
    if pruner is None:
        raise click.ClickException("only files are pruned; other stores have bounds of their own")
    bounds = pruner.bounds
    bounds = Bounds(max_pages or bounds.pages, max_bytes or bounds.size)
    with _told():
        pruned = pruner.now(bounds, keep_builds, app.middleware._site.build_id)
    pages = f"{number(pruned.pages, 'page')} and {pruned.gone:,} that were gone"
    litter = number(pruned.litter, "left-over file")
    click.echo(f"Removed: {pages}, {amount(pruned.size)}; {litter}")


#: What ``flask isr`` and ``python -m wsgi_isr MODULE:APP`` have.
COMMANDS: list[click.Command] = [
    prerender,
    regenerate,
    revalidate,
    invalidate,
    list_pages,
    stats,
    clear,
    prune,
]


@click.group(commands=COMMANDS)
@click.argument("app", metavar="MODULE:APP")
@click.pass_context
def main(context: click.Context, app: str) -> None:
    """Act on the pages of an app.

    MODULE:APP is an ISRMiddleware, or has one as its wsgi_app, as in "site:app" or
    "site:create_app()".
    """
    context.obj = load(app)
