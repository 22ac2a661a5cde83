"""The setting ``ISR``: its keys, and what they come to."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import os
import typing as t
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

from django.apps import apps
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from ..config import INSTALLED, digest_of_code
from ..middleware import ISRMiddleware
from ..store.opening import FOLDER, DefaultFolder

#: Keys that are arguments of the middleware as they are; what is treated here, and what is new.
_OWN = {"RULES", "ENABLED", "BUILD_ID"}
_OPTIONS = {name.upper() for name in inspect.signature(ISRMiddleware).parameters} - _OWN - {"APP"}
_NEW = {"PATHS", "SECRET", "URL_PREFIX", "WAGTAIL_REVALIDATE", "WAGTAIL_SITE_TAGS"}
#: Hosts of a site in debug mode without ``ALLOWED_HOSTS``, as in Django.
_LOCAL = [".localhost", "127.0.0.1", "[::1]"]


def option(name: str, default: t.Any = None) -> t.Any:
    """The value of a key of ``ISR``; one that is ``None`` counts as absent."""
    value = (getattr(settings, "ISR", None) or {}).get(name)
    return default if value is None else value


def mistakes() -> Iterator[tuple[str, str]]:
    """What is wrong with the setting, each with a hint."""
    found = getattr(settings, "ISR", None) or {}
    if not isinstance(found, dict):
        yield "The setting ISR is no dictionary", "Write ISR = {'BASE_URL': 'https://...'}."
        return
    keys = _OWN | _OPTIONS | _NEW
    for key in sorted(map(str, set(found) - keys)):
        near = difflib.get_close_matches(key.upper(), keys, 1, 0.7)
        hint = f"Did you mean {near[0]!r}?" if near else f"The keys are {', '.join(sorted(keys))}."
        yield f"ISR has no key {key!r}", hint
    if not isinstance(enabled := option("ENABLED", True), bool):
        yield f"ISR['ENABLED'] is {enabled!r}", "It takes True or False."
    if not isinstance(secret := option("SECRET", ""), str | bytes):
        yield f"ISR['SECRET'] is a {type(secret).__name__}", "It takes a string or bytes."
    if not str(prefix := option("URL_PREFIX", "/")).startswith("/"):
        yield f"ISR['URL_PREFIX'] is {prefix!r}", "It takes a path, as '/_isr'."
    if ours := [name for name in settings.MIDDLEWARE if name.startswith("wsgi_isr.")]:
        hint = "Take it out, and import get_wsgi_application from wsgi_isr.django in wsgi.py."
        yield f"MIDDLEWARE has {ours[0]!r}, and ISR stands around all of Django", hint


def is_enabled() -> bool:
    return bool(option("ENABLED", not settings.DEBUG))


def mount() -> str:
    """Where the site is mounted, as far as the settings say."""
    base = urlsplit(option("BASE_URL", "")).path
    return (base or settings.FORCE_SCRIPT_NAME or "").rstrip("/")


def options() -> dict[str, t.Any]:
    """The arguments of the middleware, but for its rules and its build.

    :raises ImproperlyConfigured: for a key or a value that there is not.
    """
    for mistake, hint in mistakes():
        raise ImproperlyConfigured(f"{mistake}. {hint}")
    found = {key.lower(): option(key) for key in _OPTIONS if option(key) is not None}
    base = getattr(settings, "BASE_DIR", None)
    if "cache" not in found and base is not None:
        # The name of the URLconf, so that two sites in one folder have no pages in common.
        name = quote(str(settings.ROOT_URLCONF), safe="")
        found["cache"] = DefaultFolder(os.path.abspath(Path(base, FOLDER, name)))
    hosts = settings.ALLOWED_HOSTS or (_LOCAL if settings.DEBUG else ["*"])
    if found.keys().isdisjoint({"base_url", "trusted_hosts"}) and "*" not in hosts:
        # In ALLOWED_HOSTS ports do not matter.
        found["trusted_hosts"] = [f"{host}:*" for host in hosts]
    return found


def build_digest() -> str:
    """The same for the same files of the project, on every machine.

    Files of the project are Python files, templates and compiled translations under ``BASE_DIR``
    and in apps that are not installed as packages, and the template folders of ``TEMPLATES``.
    """
    excluded = {os.path.normpath(p) for p in (settings.MEDIA_ROOT, settings.STATIC_ROOT) if p}
    roots = {app.label: app.path for app in apps.get_app_configs()}
    roots = {label: path for label, path in roots.items() if INSTALLED.isdisjoint(Path(path).parts)}
    base = getattr(settings, "BASE_DIR", None)
    if base is None or not INSTALLED.isdisjoint(Path(base).parts):
        # A project that is installed like a library: its package.
        spec = importlib.util.find_spec(str(settings.ROOT_URLCONF).partition(".")[0])
        base = os.path.dirname((spec and spec.origin) or "")
    roots[""] = os.path.normpath(base) if base else ""
    folders = [str(folder) for engine in settings.TEMPLATES for folder in engine.get("DIRS", ())]
    roots |= {os.path.join(str(n), "templates"): folder for n, folder in enumerate(folders)}
    return digest_of_code(roots, excluded)
