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

from ..rules import Rule
from . import config, handler, paths

_CACHES = {
    "django.middleware.cache.CacheMiddleware",
    "django.middleware.cache.FetchFromCacheMiddleware",
    "django.middleware.cache.UpdateCacheMiddleware",
}
_SESSIONS = "django.contrib.sessions.middleware.SessionMiddleware"
_LOGIN = "django.contrib.auth.middleware.LoginRequiredMiddleware"


def check_settings(app_configs: object, **extra: t.Any) -> list[CheckMessage]:
    """The setting itself."""
    found: list[CheckMessage] = [
        Error(f"{mistake}.", hint=f"{hint[0].upper()}{hint[1:]}.", id="isr.E001")
        for mistake, hint in config.mistakes()
    ]
    if found:
        return found
    try:
        handler.make_middleware()
    except Exception as error:
        return [Error(f"The setting ISR cannot work: {error}", hint="Correct it.", id="isr.E002")]
    return [*_check_hosts(), *_check_visitors()]


def _check_hosts() -> Iterator[CheckMessage]:
    base = urlsplit(config.option("BASE_URL", ""))
    if base.netloc and not validate_host(base.hostname or "", settings.ALLOWED_HOSTS or ["*"]):
        text = f"The host of ISR['BASE_URL'], {base.netloc}, is not in ALLOWED_HOSTS."
        yield Error(text, hint="Django refuses all renders: add it.", id="isr.E003")
    if base.scheme == "http" and settings.SECURE_SSL_REDIRECT:
        text = "ISR['BASE_URL'] begins with http://, and SECURE_SSL_REDIRECT is on."
        yield Error(text, hint="Each render is a redirect: write https://.", id="isr.E004")
    for name in ("SECURE_PROXY_SSL_HEADER", "USE_X_FORWARDED_HOST"):
        if getattr(settings, name) and not base.netloc:
            text = f"{name} is set, and ISR['BASE_URL'] is not."
            hint = (
                "Pages are rendered without the headers of a proxy, so not under the public scheme "
                "and host. Set BASE_URL; or, for a site with several hosts, write "
                "ProxyFix(get_wsgi_application(), x_host=1) in wsgi.py (werkzeug.middleware."
                "proxy_fix), and silence this check."
            )
            yield Warning(text, hint=hint, id="isr.W001")
    if getattr(settings, "BASE_DIR", None) is None and config.option("CACHE") is None:
        text = (
            "There is neither BASE_DIR nor ISR['CACHE']: pages are kept in the working directory."
        )
        hint = "Each process has to have the same: set ISR['CACHE'] = 'file:///var/cache/site'."
        yield Warning(text, hint=hint, id="isr.W002")


def _check_visitors() -> Iterator[CheckMessage]:
    if settings.DEBUG and not config.is_enabled():
        text = "ISR is off, because DEBUG is on."
        yield Info(text, hint="ISR['ENABLED'] = True switches it on all the same.", id="isr.I001")
    elif settings.DEBUG:
        text = "ISR['ENABLED'] is on in DEBUG: pages of code that you change are stored."
        yield Warning(text, hint="Leave it out where you do not need it.", id="isr.W003")
    bypass, cookie = config.option("BYPASS", ()), settings.SESSION_COOKIE_NAME
    if _SESSIONS in settings.MIDDLEWARE and not callable(bypass) and cookie not in bypass:
        text = "There are sessions, and ISR['BYPASS'] does not name their cookie."
        hint = (
            "Those who are logged in see the pages of everybody, without their name and without "
            f"messages: set 'BYPASS': [{cookie!r}, 'messages'], or a callable(environ)."
        )
        yield Warning(text, hint=hint, id="isr.W004")


def check_site(app_configs: object, **extra: t.Any) -> list[CheckMessage]:
    """The middlewares, the views and ``wsgi.py``."""
    if any(config.mistakes()):
        return []
    return [*_check_middlewares(), *_check_languages(), *_check_wsgi()]


def _check_middlewares() -> Iterator[CheckMessage]:
    for name in settings.MIDDLEWARE:
        if name in _CACHES:
            text = f"{name} stores pages inside of ISR."
            hint = "A page that is rendered anew may be its old one: remove it from MIDDLEWARE."
            yield Warning(text, hint=hint, id="isr.W005")
    if _LOGIN in settings.MIDDLEWARE:
        for place in paths.places():
            if paths.declared(place.view) and getattr(place.view, "login_required", True):
                text = f"LoginRequiredMiddleware hides the page {paths.label_of(place)!r}."
                hint = "A page is for everybody: put @login_not_required on it."
                yield Warning(text, hint=hint, id="isr.W006")


def _check_languages() -> Iterator[CheckMessage]:
    """Outside of ``i18n_patterns`` the language is a header, which has to be part of the key."""
    if not any(_is_locale(name) for name in settings.MIDDLEWARE):
        return
    without = [
        paths.label_of(place)
        for place in paths.places(with_languages=False)
        if (declaration := paths.declared(place.view)) and not _varies(declaration.rule)
    ]
    rules = config.option("RULES")
    for pattern, rule in rules.items() if isinstance(rules, Mapping) else ():
        if rule is not None and not (isinstance(rule, Rule) and _varies(rule)):
            if get_language_from_path(pattern) is None:
                without.append(pattern)
    if without:
        codes = [code for code, _ in settings.LANGUAGES]
        codes.sort(key=lambda code: code != settings.LANGUAGE_CODE)
        text = f"LocaleMiddleware makes these pages depend on the language: {', '.join(without)}."
        vary = f"vary={{'Accept-Language': {codes[:5]}}}"
        hint = f"They are not stored without {vary}, or i18n_patterns."
        yield Warning(text, hint=hint, id="isr.W007")


def _is_locale(name: str) -> bool:
    found = import_string(name)
    return isinstance(found, type) and issubclass(found, LocaleMiddleware)


def _varies(rule: Rule) -> bool:
    return any(name == "accept-language" for name, _ in rule.variants) or "vary" in rule.ignored


def _check_wsgi() -> Iterator[CheckMessage]:
    name = getattr(settings, "WSGI_APPLICATION", None)
    if not name:
        return
    try:
        import_string(name)
    except ImportError:
        # Django says so.
        return
    if not handler.is_served:
        text = f"{name} is not made by wsgi_isr.django: there are no pages."
        hint = "In wsgi.py, import get_wsgi_application from wsgi_isr.django."
        yield Warning(text, hint=hint, id="isr.W008")
