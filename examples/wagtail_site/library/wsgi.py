"""What a server loads: ``gunicorn library.wsgi``."""

from __future__ import annotations

import os

from wsgi_isr.django import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "library.settings")
application = get_wsgi_application()
