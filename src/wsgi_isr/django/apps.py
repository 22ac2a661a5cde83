"""The Django app: its checks, and what it hears of."""

from __future__ import annotations

from django.apps import AppConfig
from django.core import checks
from django.core.signals import got_request_exception


class ISRConfig(AppConfig):
    name = "wsgi_isr.django"
    label = "wsgi_isr"
    verbose_name = "Incremental static regeneration"

    def ready(self) -> None:
        from .checks import check_settings, check_site
        from .handler import note_error

        checks.register(check_settings, "isr")
        checks.register(check_site, "isr")
        got_request_exception.connect(note_error, dispatch_uid="wsgi_isr")
