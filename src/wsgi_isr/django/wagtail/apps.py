from __future__ import annotations

from django.apps import AppConfig
from django.core import checks


class WagtailConfig(AppConfig):
    name = "wsgi_isr.django.wagtail"
    label = "wsgi_isr_wagtail"

    def ready(self) -> None:
        # Models are there only now.
        from . import changes, serving

        changes.connect()
        serving.connect()
        checks.register(serving.check, "isr")
