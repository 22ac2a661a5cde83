"""System checks of the setting ``ISR``, and of what the site does with it."""

from __future__ import annotations

import typing as t
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

from django.conf import settings
from django.core.checks import CheckMessage, Error, Info, Warning
from django.http.request import validate_host
from django.middleware.locale import LocaleMiddleware
from django.utils.module_loading import import_string
from django.utils.translation import get_language_from_path

from ..status import MIN_SECRET
from ..views import name_of
from . import config, handler, paths
from .config import option

_SESSIONS = "django.contrib.sessions.middleware.SessionMiddleware"


def check(app_configs: object, **extra: t.Any) -> list[CheckMessage]:
    """All checks; mistakes in the setting itself come alone."""
    if found := [Error(f"{text}.", hint=hint, id="isr.E001") for text, hint in config.mistakes()]:
        return found
    try:
        handler.make_middleware()
        list(paths.read(option("PATHS", ()), calls=False))
    except Exception as error:
        return [Error(f"The setting ISR cannot work: {error}", hint="Correct it.", id="isr.E002")]
    return [*_of_settings(), *_of_middlewares(), *_of_languages(), *_of_wsgi()]


def _of_settings() -> Iterator[CheckMessage]:
    base = urlsplit(option("BASE_URL", ""))
    if base.hostname and not validate_host(base.hostname, settings.ALLOWED_HOSTS or ["*"]):
        text = f"{base.hostname}, the host of ISR['BASE_URL'], is not in ALLOWED_HOSTS."
        yield Error(text, hint="Django refuses all renders: add it.", id="isr.E003")
    if base.scheme == "http" and settings.SECURE_SSL_REDIRECT:
        text = "ISR['BASE_URL'] begins with http://, and SECURE_SSL_REDIRECT is on."
        yield Error(text, hint="Each render is a redirect: write https://.", id="isr.E004")
    for name in ("SECURE_PROXY_SSL_HEADER", "USE_X_FORWARDED_HOST"):
        if getattr(settings, name) and not base.netloc:
            hint = (
                "Pages are rendered without a proxy's headers, so not under the public scheme and "
                "host: set BASE_URL. For several hosts, write ProxyFix(get_wsgi_application(), "
                "x_host=1) in wsgi.py (werkzeug.middleware.proxy_fix), and silence this check."
            )
            yield Warning(f"{name} is set, and ISR['BASE_URL'] is not.", hint=hint, id="isr.W001")
    if 0 < len(option("SECRET", "")) < MIN_SECRET:
        hint = f"Use {MIN_SECRET} or more: secrets.token_urlsafe() makes one."
        yield Warning("ISR['SECRET'] can be guessed.", hint=hint, id="isr.W009")
    if settings.DEBUG and not config.is_enabled():
        hint = "ISR['ENABLED'] = True switches it on all the same."
        yield Info("ISR is off, because DEBUG is on.", hint=hint, id="isr.I001")


def _of_middlewares() -> Iterator[CheckMessage]:
    bypass, cookie = option("BYPASS", ()), settings.SESSION_COOKIE_NAME
    if _SESSIONS in settings.MIDDLEWARE and not callable(bypass) and cookie not in bypass:
        text = "There are sessions, and ISR['BYPASS'] does not name their cookie."
        hint = (
            "Those who are logged in see the pages of everybody, without their name and without "
            f"messages: set 'BYPASS': [{cookie!r}, 'messages'], or a callable(environ)."
        )
        yield Warning(text, hint=hint, id="isr.W004")
    for name in settings.MIDDLEWARE:
        if name.startswith("django.middleware.cache."):
            hint = "A page that is rendered anew may be its old one: remove it from MIDDLEWARE."
            yield Warning(f"{name} stores pages inside of ISR.", hint=hint, id="isr.W005")


def _of_languages() -> Iterator[CheckMessage]:
    """Outside of ``i18n_patterns`` the language is a header, which has to be part of the key."""
    found = map(import_string, settings.MIDDLEWARE)
    if not any(isinstance(each, type) and issubclass(each, LocaleMiddleware) for each in found):
        return
    without = [
        name if isinstance(name, str) else name_of(getattr(view, "view_class", view))
        for view, name, _ in paths.views(with_languages=False)
        if not paths.language()
        and (declaration := paths.declared(view))
        and not paths.varies(declaration.rule)
    ]
    rules = option("RULES")
    for pattern, rule in rules.items() if isinstance(rules, Mapping) else ():
        if rule is not None and not paths.varies(rule) and get_language_from_path(pattern) is None:
            without.append(pattern)
    if without:
        codes = [code for code, _ in settings.LANGUAGES][:5]
        text = f"LocaleMiddleware makes these pages depend on the language: {', '.join(without)}."
        hint = f"Give them vary={{'Accept-Language': {codes}}}, or i18n_patterns: none is stored."
        yield Warning(text, hint=hint, id="isr.W007")


def _of_wsgi() -> Iterator[CheckMessage]:
    if name := getattr(settings, "WSGI_APPLICATION", None):
        try:
            import_string(name)
        except Exception:
            # Whatever is wrong there, commands work without it, and the server says so.
            return
        if not handler.is_served:
            text = f"{name} is not made by wsgi_isr.django: there are no pages."
            hint = "In wsgi.py, import get_wsgi_application from wsgi_isr.django."
            yield Warning(text, hint=hint, id="isr.W008")
