"""Parts of the status page's HTML: what is around a page, tables, notes, forms."""

from __future__ import annotations

import time
import typing as t
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from urllib.parse import urlencode

from markupsafe import Markup as H

from .assets import CSS, JS

if t.TYPE_CHECKING:
    from ..middleware import ISRMiddleware

NAV = (("/", "Overview"), ("/pages", "Pages"), ("/invalidations", "Invalidations"))


Counts: t.TypeAlias = "Mapping[str, t.Any]"


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
