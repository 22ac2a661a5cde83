"""What the status page shows, as HTML: from a middleware and what was asked to a whole page."""

from __future__ import annotations

import time
import typing as t
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from urllib.parse import urlencode

from markupsafe import Markup as H

from ..explain import Explanation
from ..listing import ORDERS, PageInfo, amount, call_row, number, percentile, span
from ..metrics import COUNTERS
from ..rules import to_wsgi
from ..store.protocol import Record
from .assets import CSS, JS

if t.TYPE_CHECKING:
    from ..middleware import ISRMiddleware

Args: t.TypeAlias = "Mapping[str, str]"
Counts: t.TypeAlias = "Mapping[str, t.Any]"

#: Pages on one screen, those that are sorted, and stored ones that a request goes through: some
#: 60 µs for each of the second, 10 µs for each of the last.
MAX_ROWS, MAX_MATCHING, MAX_READ = 50, 5000, 20_000
MINUTES = 60
NAV = (("/", "Overview"), ("/pages", "Pages"), ("/invalidations", "Invalidations"))
STATES = ("", "fresh", "stale", "expired", "failed")
SORTS = {
    "url": "URL",
    "age": "Age",
    "size": "Size",
    "render": "Render time",
    "use": "Last use",
}
DONE = {
    "regenerate": "Rendered just now, and new in every worker.",
    "expire": "Expired: the next visitor of this path waits for a new page.",
}
#: The first sentence on a page, by its state, and how urgent it is.
VERDICTS = {
    "fresh": ("good", "This page is new."),
    "stale": ("warn", "This page is old: {why}."),
    "expired": ("warn", "This page has expired: {why}."),
    "failed": ("bad", "This page was never rendered well. The next visitor tries again."),
    "excluded": ("warn", "This URL has no page: a rule of None excludes it."),
    "unknown": ("warn", "Nothing is stored for this URL. Its first visitor waits for a render."),
}
REASONS = {
    "miss": "for its first visitor",
    "stale": "when a visitor got the old one",
    "revalidate": "on demand",
    "prerender": "ahead of its visitors",
}
NEXT = {
    "stale": "The next visitor gets it once more, and starts the render of a new one.",
    "expired": "The next visitor waits for a new one.",
}


class Context(t.NamedTuple):
    """Whom a page is for.

    :param root: the mount point.
    :param token: for the forms of this visitor.
    """

    middleware: ISRMiddleware
    root: str
    token: str

    def link(self, path: str, text: object, **query: object) -> H:
        given = {name: value for name, value in query.items() if value}
        tail = f"?{urlencode(given)}" if given else ""
        return H('<a href="{}{}{}">{}</a>').format(self.root, path, tail, text)

    def button(self, path: str, text: str, url: str = "", css: str = "") -> H:
        return H(
            '<form method="post" action="{}{}"><input type="hidden" name="csrf_token" value="{}">'
            '<input type="hidden" name="url" value="{}"><button class="{}">{}</button></form>'
        ).format(self.root, path, self.token, url, css, text)


def whole(context: Context, title: str, main: H, path: str | None = None) -> str:
    """A whole page; without a path, for somebody who has not logged in."""
    links = each(
        '<a href="{}{}"{}>{}</a>',
        ((context.root, to, H(' aria-current="page"') if to == path else "", n) for to, n in NAV),
    )
    tools = H(
        '<nav aria-label="Views">{}</nav>'
        '<div class="tools"><button id="pause" hidden>Pause</button>{}</div>'
    ).format(links, context.button("/logout", "Log out"))
    return H(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="robots" content="noindex"><title>{} · Page status</title>'
        '<link rel="icon" href="data:,"><style>{}</style></head><body>'
        '<a class="skip" href="#main">Skip to content</a>'
        '<header><div class="bar"><span class="name">Page status</span>{}</div></header>'
        '<main id="main"><h1>{}</h1>{}</main><script>{}</script></body></html>\n'
    ).format(title, H(CSS), "" if path is None else tools, title, main, H(JS))


def login(context: Context, why: str, wanted: str) -> str:
    main = H(
        '{}<form class="login" method="post" action="{}/login">'
        '<input type="hidden" name="next" value="{}"><label>Secret'
        '<input type="password" name="secret" required autofocus autocomplete="current-password">'
        '</label><button class="main">Log in</button></form>'
    )
    alert = note(why, css="bad", role="alert") if why else ""
    return whole(context, "Log in", main.format(alert, context.root, wanted))


def refused(context: Context, why: str) -> str:
    alert = note(why, css="bad", role="alert")
    main = H("{}<p>{}</p>").format(alert, context.link("/", "Overview"))
    return whole(context, "Not done", main, "")


# The overview.


def overview(context: Context, args: Args) -> str:
    found = context.middleware.on_demand().overview()
    stats, store, processes = found["stats"], found["store"], found["workers"]
    began = found["periods"].get("store", {"at": 0.0})["at"]
    times, minutes = stats["render_seconds"], by_minute(found["minutes"], stats, began)
    mean = 1000 * times["sum"] / max(1, times["count"])
    periods = {name: f"{period['hit_ratio']:.1%}" for name, period in found["periods"].items()}
    begun = {name: moment(period["at"]) for name, period in found["periods"].items()}
    ratios = H("{} since {}<br>{} by this build, since {}").format(
        *(part.get(name, "-") for name in ("store", "build") for part in (periods, begun))
    )
    slow = context.link("/pages", "the slowest", sort="render")
    failed = context.link("/pages", "which, and why", state="failed")
    first = context.link("/pages", "what goes first", sort="use")
    room = meter(stats["bytes"], store["max_bytes"], amount)
    tiles = [
        ("Hit ratio today", periods.get("day", "-"), ratios),
        ("Renders", f"{stats['renders']:,}", H("{:,.0f} ms on average<br>{}").format(mean, slow)),
        ("Failed renders", f"{stats['failures']:,}", failed),
        ("Pages stored", f"{stats['pages']:,}", meter(stats["pages"], store["max_pages"], plain)),
        ("Storage", amount(stats["bytes"]), H("{}{}").format(room, first)),
        ("Memory", amount(stats["memory_bytes"]), f"in {number(len(processes), 'worker')}"),
    ]
    main = H(
        '<div id="now" data-live>{}<dl class="tiles">{}</dl></div>'
        '<h2>The last hour</h2><div id="hour" class="charts" data-live>{}{}</div>'
        '<div id="work" data-live><h2>Rendered now</h2>{}<h2>Workers</h2>{}</div>'
    ).format(
        health(store, processes),
        each("<div><dt>{}</dt><dd><strong>{}</strong><span>{}</span></dd></div>", tiles),
        chart("Visits a minute", minutes, hits="fresh", stale_hits="stale", misses="waited"),
        chart("Renders a minute", minutes, renders="renders", failures="failed"),
        rendering(context, processes),
        workers(processes),
    )
    return whole(context, "Overview", main, "/")


def health(store: Counts, processes: Sequence[Counts]) -> H:
    unwell = [p for p in processes if p.get("store", "ok") != "ok"]
    here = "answers" if store["state"] == "ok" else f"is {store['state']}"
    text = H("The store ({}) {}, since {}.").format(store["kind"], here, moment(store["since"]))
    if unwell:
        names = ", ".join(f"{p.get('pid')} ({p.get('store')})" for p in unwell)
        return note(text, f"It does not answer all workers: {names}.", css="bad")
    return note(text, css="good" if store["state"] == "ok" else "bad")


def rendering(context: Context, processes: Iterable[Counts]) -> H:
    urls = [(url, p.get("pid")) for p in processes for url in p.get("rendering", ())]
    if not urls:
        return H('<p class="soft">Nothing, at this moment.</p>')
    return table("URL Worker", ((context.link("/page", url, url=url), pid) for url, pid in urls))


def workers(processes: Iterable[Counts]) -> H:
    rows = (
        (
            H("<b>{}</b> {}").format(p.get("pid", ""), p.get("host", "")),
            p.get("build") or "-",
            moment(p.get("began")),
            amount(p.get("memory_bytes", 0)),
            len(p.get("rendering", ())),
            p.get("waiting", 0),
            state("fresh" if p.get("store", "ok") == "ok" else "failed", p.get("store", "ok")),
        )
        for p in processes
    )
    return table("Process Build Since Memory# Rendering# Waiting# Store", rows)


def by_minute(minutes: Mapping[int, Counts], now: Counts, began: float) -> list[dict[str, float]]:
    """What was counted in each minute of the last hour, the oldest first.

    :param began: the time of the first totals, in seconds since 1970.
    """
    last = int(time.time() // 60)
    points = [*sorted(minutes.items()), (last + 1, now)]
    if points[0][0] == began // 60:
        # All was counted since then.
        points[0] = (points[0][0], {})
    counted = {
        minute: {name: after.get(name, 0) - before.get(name, 0) for name in COUNTERS}
        for (minute, before), (_, after) in zip(points, points[1:], strict=False)
    }
    return [counted.get(minute, {}) for minute in range(last - MINUTES + 1, last + 1)]


def chart(title: str, minutes: Sequence[Counts], **series: str) -> H:
    """Bars of the last hour, one series on another."""
    highest = max(sum(m.get(name, 0) for name in series) for m in minutes)
    bars: list[tuple[object, ...]] = []
    for x, minute in enumerate(minutes):
        top = 100.0
        for name, label in series.items():
            height = 100 * minute.get(name, 0) / max(1, highest)
            top -= height
            bars += [(label, x, round(top, 2), round(height, 2))] if height > 0 else []
    sums = [(label, sum(m.get(name, 0) for m in minutes), label) for name, label in series.items()]
    words = ", ".join(f"{total:,.0f} {label}" for label, total, _ in sums)
    return H(
        "<figure><figcaption>{} (most: {:,.0f})</figcaption>"
        '<svg viewBox="0 0 60 100" preserveAspectRatio="none" role="img" aria-label="{}">{}</svg>'
        '<div class="axis"><span>1 h ago</span><span>now</span></div><ul class="key">{}</ul>'
        "</figure>"
    ).format(
        title,
        highest,
        f"{title}; in the last hour {words}",
        each('<rect class="{}" x="{}" y="{}" width=".8" height="{}"/>', bars),
        each('<li class="{}">{:,.0f} {}</li>', sums),
    )


# The pages.


def page_list(context: Context, args: Args) -> str:
    words, tag = args.get("q", "").strip(), args.get("tag", "").strip()
    wanted = args.get("state", "") if args.get("state") in STATES else ""
    order = args.get("sort", "") if args.get("sort") in SORTS else "url"
    after, start = args.get("after", ""), args.get("start", "")
    first = int(start) if start.isascii() and start.isdigit() and len(start) < 9 else 0
    states = ((name, name.capitalize() or "Any") for name in STATES)
    form = H(
        '<form class="filter" role="search" action="{}/pages">'
        '<label class="wide">URL, or a part of its path'
        '<input type="search" name="q" value="{}"></label>'
        '<label>Tag<input name="tag" value="{}"></label>'
        '<label>State<select name="state">{}</select></label>'
        '<label>Sort by<select name="sort">{}</select></label><button>Show</button></form>'
    ).format(
        context.root,
        words,
        tag,
        options(states, wanted),
        options(SORTS.items(), order),
    )
    try:
        found, rest, read = find(context, words, tag, wanted, after)
    except NotImplementedError as error:
        return whole(context, "Pages", note(error, css="warn"), "/pages")
    found.sort(key=ORDERS[order])
    shown = found[first : first + MAX_ROWS]
    query = {"q": words, "tag": tag, "state": wanted, "sort": order}
    ways = [context.link("/pages", "First pages", **query)] if after or first else []
    if (more := first + MAX_ROWS) < len(found):
        ways.append(context.link("/pages", "Next pages", **query, after=after, start=more))
    elif rest:
        ways.append(context.link("/pages", "Further pages", **query, after=rest))
    at = f"{first + 1:,} to {first + len(shown):,} of {len(found):,}" if shown else "None"
    if rest or after:
        at += f" found among {read:,} stored pages; there are others"
    main = H('{}<p class="soft" role="status">{}</p>{}<p class="buttons">{}</p>')
    main = main.format(form, at, page_table(context, shown), H(" ").join(ways))
    return whole(context, "Pages", main, "/pages")


def find(
    context: Context, words: str, tag: str, wanted: str, after: str
) -> tuple[list[PageInfo], str, int]:
    """Pages, the name after which there may be more, and how many were gone through."""
    operations, found = context.middleware.on_demand(), list[PageInfo]()
    if wanted == "failed":
        failing = islice(operations.failing(), MAX_READ)
        return [page for page in failing if words in page.url and not tag], "", 0
    path, _, query = words.partition("?")
    is_whole = "://" in path
    full_path = to_wsgi("/" + path.partition("://")[2].partition("/")[2] if is_whole else path)

    def matches(record: Record) -> bool:
        in_path = full_path.lower() in record.path.lower()
        return in_path and (not tag or f"tag:{tag}" in record.labels)

    read, matching, name = 0, 0, ""
    # The path of a whole URL is found at once; a part of one has to be searched for.
    for where in [full_path, None] if is_whole and not after else [None]:
        for read, (name, page) in enumerate(operations.matching(after, matches, where), 1):
            # Those that never rendered well have no name, and no record that matches.
            if page is not None and (name or (words in page.url and not tag)):
                matching += 1
                found += [page] if wanted in ("", page.state) and query in page.url else []
            if matching == MAX_MATCHING or read == MAX_READ:
                return found, name, read
        if found:
            break
    return found, "", read


def page_table(context: Context, pages: Sequence[PageInfo]) -> H:
    if not pages:
        return note("None of these pages is like that.")
    error = H('<br><span class="error">{}</span>')
    rows = (
        (
            context.link("/page", page.url, url=page.url)
            + (error.format(page.last_error) if page.last_error else ""),
            state(page.state),
            page.status or "-",
            span(page.age),
            "always" if page.ttl is None else span(max(0, page.ttl)),
            span(time.time() - page.used_at) if page.used_at else "-",
            amount(page.size),
            f"{1000 * page.seconds:,.0f} ms",
            tags(context, page.tags[:8]),
        )
        for page in pages
    )
    heads = "URL State Status# Age# Fresh\N{NO-BREAK SPACE}for# Used# Size# Render# Tags"
    return table(heads, rows)


def tags(context: Context, names: Iterable[str]) -> H:
    links = (context.link("/pages", name, tag=name) for name in names)
    return H('<span class="tags">{}</span>').format(H(", ").join(links))


# One page.


def one_page(context: Context, args: Args, problem: str = "") -> str:
    url, found, parts = args.get("url", "").strip(), None, []
    try:
        found = context.middleware.explain(url) if url else None
    except ValueError as error:
        problem = problem or str(error)
    if done := DONE.get(args.get("done", "")):
        parts.append(note(done, css="good", role="status"))
    if problem:
        parts.append(note(problem, css="bad", role="alert"))
    if found is not None:
        parts += [
            H('<div id="verdict" data-live>{}</div>').format(judge(context, found)),
            H('<div class="buttons">{}{}</div>').format(
                context.button("/regenerate", "Regenerate now", url, "main"),
                context.button("/expire", "Expire", url),
            ),
            H('<div id="facts" data-live>{}</div>').format(facts(context, found)),
        ]
    form = H(
        '<h2>Another page</h2><form class="filter" action="{}/page"><label class="wide">URL'
        '<input name="url" value="{}" required></label><button>Explain</button></form>'
    )
    parts.append(form.format(context.root, url))
    return whole(context, url or "A page", H("").join(parts), "/pages")


def judge(context: Context, found: Explanation) -> H:
    """Whether a page is new, and in every worker; and if not, why, and what happens next."""
    css, verdict = VERDICTS.get(found.state, VERDICTS["unknown"])
    by = found.invalidated_by
    lines: list[object] = [
        verdict.format(why=f"it was invalidated ({by})" if by else "its time is over")
    ]
    if call := found.invalidation:
        who = f" by {call['by']}" if call.get("by") else ""
        lines.append(H("That was at {}{}.").format(moment(call.get("at")), who))
    if found.age is not None:
        why = REASONS.get(found.reason or "", found.reason)
        took = f"{1000 * (found.seconds or 0):,.0f} ms"
        lines.append(f"It was rendered {span(found.age)} ago, {why}, in {took}.")
    if found.state == "fresh":
        left = "until it is revalidated" if found.ttl is None else f"for another {span(found.ttl)}"
        lines.append(f"It stays fresh {left}.")
    lines.append(NEXT.get(found.state))
    if found.age is not None:
        lines += everywhere(context, found)
    if found.error:
        css = "bad"
        lines.append(f"The last {number(found.failures, 'render')} failed: {found.error}")
    if found.refusal:
        css = "bad"
        lines.append(f"The app's answer was refused ({found.refusal}): {found.remedy or ''}")
    return note(*filter(None, lines), css=css)


def everywhere(context: Context, found: Explanation) -> t.Iterator[str]:
    """Whether all workers have this very page."""
    overview = context.middleware.on_demand().overview()
    shared = context.middleware.store.kind.shared
    if shared == "process":
        yield "Each worker has pages of its own: this store is in its memory."
        return
    groups: dict[str, list[str]] = {}
    newest = max((p.get("followed", 0) for p in overview["workers"]), default=0)
    for worker in overview["workers"]:
        if worker.get("build") != found.build:
            how = f"of build {worker.get('build')}, which has pages of its own"
        elif worker.get("store") == "away":
            how = "without the store, and perhaps with an older page"
        else:
            # On one machine an invalidation holds at once, whenever they last said so.
            behind = shared == "network" and worker.get("followed", 0) < newest
            how = "about to follow the last invalidation" if behind else "in all workers"
        groups.setdefault(how, []).append(str(worker.get("pid")))
    if list(groups) == ["in all workers"]:
        yield f"It is the same in all workers ({len(overview['workers'])})."
    else:
        yield from (f"Worker {', '.join(p)}: {h}." for h, p in groups.items() if "all" not in h)


def facts(context: Context, found: Explanation) -> H:
    rows: list[tuple[str, object]] = [
        ("A visitor gets", found.answer),
        ("State", state(found.state)),
        ("Status", found.status),
        ("Rendered", moment(found.rendered_at)),
        ("Tags", tags(context, found.tags) if found.tags else None),
        ("Rule", found.rule or "none: the app's answer decides"),
        ("Found by", H("<br>").join(found.rules)),
        ("Also stored", H("<br>").join(found.variants)),
        *((name.capitalize(), found.key[name]) for name in ("mount", "query", "vary", "build")),
    ]
    shown = each("<dt>{}</dt><dd>{}</dd>", (row for row in rows if row[1]))
    renders = [
        (moment(r.at), REASONS.get(r.reason, r.reason), f"{1000 * r.seconds:,.0f} ms")
        for r in found.renders
    ]
    took = [1000 * percentile([r.seconds for r in found.renders], share) for share in (0.5, 0.95)]
    history = H('<p class="soft">Half of them took {:,.0f} ms at most, 95% {:,.0f} ms.</p>{}')
    return H('<h2>Details</h2><dl class="facts">{}</dl><h2>Last renders</h2>{}').format(
        shown, history.format(*took, table("When Why Took#", renders)) if renders else "-"
    )


# The journal.


def journal(context: Context, args: Args) -> str:
    rows = [
        (moment(call.get("at")), *call_row(call))
        for call in context.middleware.on_demand().journal()
    ]
    shown = table("When Call What Effect By Process", rows)
    main = H('<div id="journal" data-live>{}</div>')
    main = main.format(shown if rows else note("Nobody has invalidated anything yet."))
    return whole(context, "Invalidations", main, "/invalidations")


# Small parts.


def each(template: str, rows: Iterable[Sequence[object]]) -> H:
    return H("").join(H(template).format(*row) for row in rows)


def table(heads: str, rows: Iterable[Sequence[object]]) -> H:
    """A table; where there is little room each row becomes a card.

    :param heads: of the columns, where a ``#`` at the end says that it has numbers.
    """
    names = [(H("num") if head[-1] == "#" else "", head.rstrip("#")) for head in heads.split(" ")]
    return H("<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>").format(
        each('<th scope="col" class="{}">{}</th>', names),
        each(
            "<tr>{}</tr>",
            (
                [
                    each(
                        '<td class="{}" data-label="{}">{}</td>',
                        ((*name, cell) for name, cell in zip(names, row, strict=True)),
                    )
                ]
                for row in rows
            ),
        ),
    )


def options(choices: Iterable[tuple[str, str]], chosen: str) -> H:
    rows = ((value, H(" selected") if value == chosen else "", name) for value, name in choices)
    return each('<option value="{}"{}>{}</option>', rows)


def note(*lines: object, css: str = "", role: str = "") -> H:
    """
    :param role: ``"status"`` or ``"alert"`` for what screen readers say at once.
    """
    shown = each("<p>{}</p>", ([line] for line in lines))
    role = H(' role="{}"').format(role) if role else ""
    return H('<div class="note {}"{}>{}</div>').format(css, role, shown)


def state(name: str, text: str | None = None) -> H:
    return H('<span class="state {}">{}</span>').format(name, text or name)


def meter(value: float, bound: float | None, show: Callable[[float], str]) -> object:
    if bound is None:
        return "no bound"
    bar = H('of {}<meter max="{}" high="{}" optimum="0" value="{}"></meter>')
    return bar.format(show(bound), bound, 0.9 * bound, value)


def plain(value: float) -> str:
    return f"{value:,}"


def moment(at: object) -> H | None:
    if not isinstance(at, int | float):
        return None
    when = datetime.fromtimestamp(round(at), UTC)
    day = "" if time.time() - at < 43_200 else f"{when:%Y-%m-%d} "
    return H('<time datetime="{}">{}{:%H:%M:%S} UTC</time>').format(when.isoformat(), day, when)
