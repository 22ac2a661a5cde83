"""Paths of pages: which view a path leads to, and what can be prerendered."""

from __future__ import annotations

import contextlib
import dataclasses
import types
import typing as t
from collections.abc import Callable, Iterable, Iterator

from django.conf import settings
from django.conf.urls.i18n import is_language_prefix_patterns_used
from django.core.handlers.wsgi import get_path_info
from django.http import Http404
from django.urls import (
    LocalePrefixPattern,
    NoReverseMatch,
    ResolverMatch,
    URLResolver,
    get_resolver,
    get_script_prefix,
    resolve,
    reverse,
    set_script_prefix,
)
from django.utils import translation
from django.utils.encoding import iri_to_uri
from django.utils.module_loading import import_string

from ..metadata import check_iterable
from ..ondemand import Hint
from ..rules import EXCLUDED, Rule
from ..views import Declaration, Declared, declaration_of
from . import routes
from .config import option

if t.TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

#: For adapters: the rule of a path whose view is not decorated, by what it leads to, and its rule
#: in the settings.
rule_finders: list[Callable[[ResolverMatch, Rule | None], Rule | None]] = []
#: For adapters: more paths that can be prerendered.
path_sources: list[Callable[[], Iterable[str]]] = []

#: In place of a host in sitemaps: their paths are wanted.
_NO_HOST = "isr.invalid"


def match(path: str) -> ResolverMatch | None:
    """What a path leads to, in the language that is its prefix."""
    language = translation.get_language_from_path(path) or settings.LANGUAGE_CODE
    with translation.override(language):
        try:
            return resolve(path, settings.ROOT_URLCONF)
        except Http404:
            # Unknown, or short of a slash; Django says so better.
            return None


def declared(view: object) -> Declaration | None:
    """What `isr_page` said of a view, also on the ``get`` of a class."""
    get = getattr(getattr(view, "view_class", None), "get", None)
    return declaration_of(view) or declaration_of(get)


def varies(rule: object) -> bool:
    """Whether a page may depend on the language that a visitor asks for."""
    return isinstance(rule, Rule) and (
        "vary" in rule.ignore or "accept-language" in dict(rule.variants)
    )


def language() -> dict[str, list[str]]:
    """The ``vary`` of pages whose path says that they have the default language.

    Django says that they vary where the others are in ``i18n_patterns``.
    """
    used, default_has_prefix = is_language_prefix_patterns_used(settings.ROOT_URLCONF)
    return {"Accept-Language": [settings.LANGUAGE_CODE]} if used and not default_has_prefix else {}


def find(environ: WSGIEnvironment, other: Rule | None) -> tuple[str, Declared]:
    """Which view a request is for, ``""`` for none, and what is declared of it."""
    path = get_path_info(environ) or "/"
    if routes.serves(path):
        return "isr", EXCLUDED
    if (found := match(path)) is None:
        return "", None
    for finder in rule_finders:
        if (rule := finder(found, other)) is not None:
            return found.view_name, rule
    declaration = declared(found.func)
    if declaration is not None and not varies(declaration.rule):
        vary = {**(declaration.vary or {}), **language()}
        declaration = dataclasses.replace(declaration, vary=vary)
    return found.view_name, declaration


def views(
    resolver: t.Any = None, namespaces: tuple[str, ...] = (), with_languages: bool = True
) -> Iterator[tuple[t.Any, t.Any, dict[str, t.Any]]]:
    """All views of the URLconf, what `django.urls.reverse` calls them, and their arguments.

    :param with_languages: those in ``i18n_patterns``, too.
    """
    for pattern in (resolver or get_resolver(settings.ROOT_URLCONF)).url_patterns:
        if isinstance(pattern, URLResolver):
            if with_languages or not isinstance(pattern.pattern, LocalePrefixPattern):
                yield from views(pattern, (*namespaces, *filter(None, [pattern.namespace])))
        else:
            name = ":".join((*namespaces, pattern.name)) if pattern.name else pattern.callback
            yield pattern.callback, name, pattern.default_args


def prerender_paths(mount: str = "") -> list[str]:
    """Every path once: of pages without URL values, of ``paths``, sitemaps and ``ISR["PATHS"]``.

    :param mount: where the site is mounted.
    :raises TypeError: for what a generator may not yield.
    """
    before = get_script_prefix()
    set_script_prefix(f"{mount}/")
    try:
        listed = (path for each in (option("PATHS", ()), *path_sources) for path in read(each))
        # Sitemaps come last: what else names a URL says that it is a page.
        found = [*_of_views(), *listed, *_of_sitemaps()]
    finally:
        set_script_prefix(before)
    return list(dict.fromkeys(found))


def listed() -> Iterator[str]:
    """What ``paths`` and ``ISR["PATHS"]`` list, of views with ``fallback=False``."""
    yield from _of_views(all_exist=False)
    yield from read(option("PATHS", ()))


def _of_views(all_exist: bool = True) -> Iterator[str]:
    for view, name, _ in views():
        declaration = declared(view)
        if declaration is not None and (all_exist or declaration.fallback is False):
            yield from read(declaration.paths or (), name)
            with contextlib.suppress(NoReverseMatch):
                yield from _reversed(name, {})


def read(source: t.Any, name: t.Any = None, calls: bool = True) -> Iterator[str]:
    """The paths of a list, or of a function, which may have a name, if it is to be called."""
    if isinstance(source, str) and not source.startswith("/"):
        source = import_string(source)
    if callable(source):
        source = source() if calls else ()
    for item in check_iterable("paths", source, "/"):
        if isinstance(item, str):
            yield iri_to_uri(item)
            continue
        view, values = item if isinstance(item, tuple) and len(item) == 2 else (name, item)
        if view is None or not isinstance(values, dict):
            raise TypeError(
                "a generator yields paths, (name of a URL, dict), or in isr_page(paths=...) "
                f"dicts of URL values, not {item!r}"
            )
        yield from _reversed(view, values)


def _reversed(name: t.Any, values: dict[str, t.Any]) -> Iterator[str]:
    """The path of a view, in all languages that have one of their own."""
    has_prefixes = is_language_prefix_patterns_used(settings.ROOT_URLCONF)[0]
    codes = [code for code, _ in settings.LANGUAGES] if has_prefixes else [settings.LANGUAGE_CODE]
    for code in codes:
        with translation.override(code):
            path = reverse(name, settings.ROOT_URLCONF, kwargs=values)
        yield path


def _of_sitemaps() -> Iterator[Hint]:
    site = types.SimpleNamespace(domain=_NO_HOST, name=_NO_HOST)
    for _, _, arguments in views():
        sitemaps = arguments.get("sitemaps")
        for sitemap in sitemaps.values() if isinstance(sitemaps, dict) else ():
            sitemap = sitemap() if callable(sitemap) else sitemap
            for page in sitemap.paginator.page_range:
                for url in sitemap.get_urls(page, site, "https"):
                    location = iri_to_uri(url["location"])
                    yield Hint(location.partition(f"://{_NO_HOST}")[2] or location)
