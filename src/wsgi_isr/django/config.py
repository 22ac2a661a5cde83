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

from ..build import INSTALLED, digest_of_files, files_under, is_code
from ..middleware import ISRMiddleware

#: What is treated here, and what there is beyond the middleware.
_OWN = {"CACHE", "RULES", "ENABLED", "BUILD_ID", "TRUSTED_HOSTS"}
_BEYOND = {"PATHS", "SECRET", "URL_PREFIX", "WAGTAIL_REVALIDATE", "WAGTAIL_SITE_TAGS"}
_OPTIONS = {name.upper() for name in inspect.signature(ISRMiddleware).parameters} - _OWN - {"APP"}
#: Hosts of a site in debug mode without ``ALLOWED_HOSTS``, as in Django.
_LOCAL = [".localhost", "127.0.0.1", "[::1]"]


def option(name: str, default: t.Any = None) -> t.Any:
    """The value of a key of ``ISR``; one that is ``None`` counts as absent."""
    value = (getattr(settings, "ISR", None) or {}).get(name)
    return default if value is None else value


def mistakes() -> Iterator[tuple[str, str]]:
    """What is wrong with the keys, each with a hint."""
    found = getattr(settings, "ISR", None) or {}
    if not isinstance(found, dict):
        yield "the setting ISR is no dictionary", "write ISR = {'BASE_URL': 'https://…'}"
        return
    keys = _OWN | _BEYOND | _OPTIONS
    for key in sorted(map(str, set(found) - keys)):
        near = difflib.get_close_matches(key.upper(), keys, 1, 0.7)
        hint = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(sorted(keys))}"
        yield f"ISR has no key {key!r}", hint
    if not isinstance(option("ENABLED"), bool | None):
        yield f"ISR['ENABLED'] is {option('ENABLED')!r}", "it takes True or False"
    prefix = option("URL_PREFIX", "/_isr")
    if not isinstance(prefix, str) or not prefix.startswith("/"):
        yield f"ISR['URL_PREFIX'] is {prefix!r}", "it starts with /, as in '/_isr'"
    if not isinstance(option("SECRET"), str | bytes | None):
        yield "ISR['SECRET'] is no text", "it takes a text or bytes"


def is_enabled() -> bool:
    return bool(option("ENABLED", not settings.DEBUG))


def options() -> dict[str, t.Any]:
    """The arguments of the middleware, but for its rules and its build.

    :raises ImproperlyConfigured: for a key or a value that there is not.
    """
    for mistake, hint in mistakes():
        raise ImproperlyConfigured(f"{mistake}: {hint}")
    found = {key.lower(): option(key) for key in _OPTIONS if option(key) is not None}
    found["cache"] = option("CACHE", _default_cache())
    if "base_url" not in found or option("TRUSTED_HOSTS") is not None:
        found["trusted_hosts"] = option("TRUSTED_HOSTS", _trusted_hosts())
    return found


def _default_cache() -> str | None:
    base = getattr(settings, "BASE_DIR", None)
    if base is None:
        return None
    # The name of the URLconf, so that two sites in one folder have no pages in common.
    folder = Path(base, ".isr-cache", quote(str(settings.ROOT_URLCONF), safe=""))
    return folder.absolute().as_uri()


def _trusted_hosts() -> list[str] | None:
    hosts = settings.ALLOWED_HOSTS or (_LOCAL if settings.DEBUG else ["*"])
    # In ALLOWED_HOSTS ports do not matter.
    return None if "*" in hosts else [f"{host}:*" for host in hosts]


def build_digest() -> str:
    """The same for the same files of the project, on every machine.

    Files of the project are Python files, templates and compiled translations under ``BASE_DIR``,
    in apps that are not installed as packages, and in the template folders of ``TEMPLATES``.
    """
    excluded = {os.path.normpath(p) for p in (settings.MEDIA_ROOT, settings.STATIC_ROOT) if p}
    roots = {"": _base()} | {app.label: app.path for app in apps.get_app_configs()}
    found = {}
    for label, root in roots.items():
        if not label or INSTALLED.isdisjoint(Path(root).parts):
            for path in files_under(root, excluded):
                name = os.path.relpath(path, root)
                if is_code(name) or name.endswith(".mo"):
                    found[path] = os.path.join(label, name)
    for number, engine in enumerate(settings.TEMPLATES):
        for folder in engine.get("DIRS", ()):
            for path in files_under(str(folder), excluded):
                found[path] = os.path.join(f"templates{number}", os.path.relpath(path, folder))
    return digest_of_files({name: path for path, name in found.items()})


def _base() -> str:
    """The project's folder; that of its package, where it is installed like a library."""
    base = getattr(settings, "BASE_DIR", None)
    if base is not None and INSTALLED.isdisjoint(Path(base).parts):
        return os.path.normpath(base)
    spec = importlib.util.find_spec(str(settings.ROOT_URLCONF).partition(".")[0])
    return os.path.dirname(spec.origin or "") if spec is not None else ""


def mount() -> str:
    """Where the site is mounted, as far as the settings say."""
    base = urlsplit(option("BASE_URL", "")).path
    return (base or settings.FORCE_SCRIPT_NAME or "").rstrip("/")
