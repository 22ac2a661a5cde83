"""What the status page shows, as HTML: from a middleware and what was asked to a whole page."""

from __future__ import annotations

import time
import typing as t
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

from markupsafe import Markup as H

from ..explain import Explanation
from ..listing import ORDERS, PageInfo, amount, call_row, number, percentile, span
from ..metrics import COUNTERS
from ..rules import to_wsgi
from ..store.protocol import Record
from .parts import (
    Context,
    Counts,
    chart,
    each,
    meter,
    moment,
    note,
    options,
    plain,
    state,
    table,
    whole,
)

Args: t.TypeAlias = "Mapping[str, str]"

#: Pages on one screen, those that are sorted, and stored ones that a request goes through: some
#: 60 µs for each of the second, 10 µs for each of the last.
MAX_ROWS, MAX_MATCHING, MAX_READ = 50, 5000, 20_000
MINUTES = 60
STATES = ("", "fresh", "stale", "expired", "failed")
SORTS = {
    "url": "URL",
    "age": "Age",
    "size": "Size",
    "render": "Render time",
    "use": "Last use",
}
DONE = {
    "rendered": "Rendered just now, and new in every worker.",
    "gone": "Rendered just now: it is gone.",
    "withdrawn": "Withdrawn: its app no longer offers it, so it was removed.",
    "off": "Nothing was rendered, because ISR is switched off. The page is stale.",
    "expired": "Expired: the next visitor of this path waits for a new page.",
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
        for read, (name, page) in enumerate(operations.matching(matches, after, where), 1):
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
    main = main.format(shown if rows else note("No invalidations are recorded."))
    return whole(context, "Invalidations", main, "/invalidations")
