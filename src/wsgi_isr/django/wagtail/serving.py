"""Pages of the tree as ISR pages: which of them are, for how long, and with which tags."""

from __future__ import annotations

import contextlib
import typing as t
from collections.abc import Iterable, Iterator
from dataclasses import replace

from django.conf import settings
from django.contrib.contenttypes.models import ContentType
from django.core import checks
from django.db import DatabaseError, connection
from django.http import HttpRequest
from django.urls import ResolverMatch
from django.utils.encoding import iri_to_uri
from wagtail import hooks, views
from wagtail.models import Site

from ...metadata import check_revalidate
from ...rules import Rule
from ...views import CurrentPage
from ..config import option
from ..pages import serve_page
from ..paths import language, path_sources, rule_finders
from ..tracking import tag
from .changes import ALL, Page, page_tag, site_models, tree_tag


def connect() -> None:
    """Let Wagtail's view serve ISR pages."""
    rule_finders.append(_find_rule)
    path_sources.append(paths)
    # After all other hooks, those that ask whether the visitor may see the page among them.
    if hasattr(views, "serve_chain"):
        # Wagtail 6.4 and later.
        hooks.register("on_serve_page", _chained, order=1000)
    else:
        serve = _chained(lambda page, request, args, values: page.serve(request, *args, **values))
        hooks.register("before_serve_page", serve, order=1000)


def window_of(page: t.Any) -> t.Any:
    """Seconds for which a page is fresh, ``False``, or ``None`` for what is no ISR page."""
    # In the settings, too, `None` is a value of its own.
    default = (getattr(settings, "ISR", None) or {}).get("WAGTAIL_REVALIDATE", False)
    return getattr(page, "isr_revalidate", default)


def paths() -> Iterator[str]:
    """All that can be prerendered: paths, or whole URLs where there are several sites."""
    for page in Page.objects.live().public().specific(defer=True).iterator():
        if window_of(page) is not None and (url := page.get_url()):
            yield iri_to_uri(url)


def _find_rule(match: ResolverMatch, other: Rule | None) -> Rule | None:
    if match.url_name != "wagtail_serve":
        return None
    if other is None:
        other = Rule() if _may_be_page(match.args or match.kwargs.values()) else None
    # Pages may read parameters, as ``?page=2``. Those in ``ISR["QUERY"]`` are part of a page's
    # key; a visitor with others gets an answer of their own.
    return other and replace(other, vary={**language(), **(other.vary or {})}, undeclared="pass")


def _may_be_page(path: Iterable[t.Any]) -> bool:
    """Whether the models say that the page of a path is an ISR page.

    Wagtail's view takes whatever path there is, and what is none shall cost no render of a page.
    """
    slugs = [slug for part in path for slug in str(part).split("/") if slug]
    was_open = connection.connection is not None
    try:
        pages = Page.objects.filter(live=True, slug__in=slugs).values_list("slug", "content_type")
        found = {*pages}
        # A page may also answer for paths below its own.
        keys = {key for slug, key in found if slug == slugs[-1]} or {key for _, key in found}
        models = [ContentType.objects.get_for_id(key).model_class() for key in keys]
        return not slugs or any(window_of(model) is not None for model in models)
    except DatabaseError:
        # What is stored is served all the same.
        return True
    finally:
        # There may be no request that does.
        if not was_open:
            connection.close()


def _chained(callback: t.Any) -> t.Any:
    def serve(page: t.Any, request: HttpRequest, args: t.Any, values: t.Any) -> t.Any:
        window = window_of(page)
        # Who may see a private page does, but it is stored for nobody.
        if window is None or page.get_view_restrictions().exists():
            return callback(page, request, args, values)
        above = page.get_ancestors(inclusive=True).values_list("pk", flat=True)
        tags = {ALL, page_tag(page.pk), *map(tree_tag, above), *map(tag, site_models())}
        current = CurrentPage(window, None, tags, request.META.get("wsgi_isr.reason"))
        return serve_page(request, current, lambda: callback(page, request, args, values))

    return serve


def check(**extra: t.Any) -> list[checks.CheckMessage]:
    """System checks ``isr.E101``, ``isr.E102`` and ``isr.W101``."""
    found: list[checks.CheckMessage] = []
    try:
        if (window := window_of(None)) is not None:
            check_revalidate(window)
    except (TypeError, ValueError) as error:
        text = f"ISR['WAGTAIL_REVALIDATE']: {error}."
        hint = "False stands for pages that are revalidated on demand, None for no pages."
        found.append(checks.Error(text, hint=hint, id="isr.E101"))
    try:
        site_models()
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        text = f"ISR['WAGTAIL_SITE_TAGS']: {str(error).rstrip('.')}."
        found.append(checks.Error(text, hint="Name models: ['menus.Menu'].", id="isr.E102"))
    if option("BASE_URL"):
        with contextlib.suppress(DatabaseError):
            if Site.objects.values("hostname").distinct().count() > 1:
                text = "There are several sites of Wagtail, and ISR['BASE_URL'] is set."
                hint = "All hosts show the pages of that one: leave it out, and set ALLOWED_HOSTS."
                found.append(checks.Warning(text, hint=hint, id="isr.W101"))
    return found
