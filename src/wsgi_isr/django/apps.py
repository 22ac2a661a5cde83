from __future__ import annotations

from django.apps import AppConfig
from django.core import checks
from django.core.signals import got_request_exception


class DjangoConfig(AppConfig):
    name = "wsgi_isr.django"
    label = "wsgi_isr"
    verbose_name = "Incremental static regeneration"

    def ready(self) -> None:
        # Settings are read only now.
        from .checks import check
        from .handler import note_error

        checks.register(check, "isr")
        got_request_exception.connect(note_error, dispatch_uid="wsgi_isr")
