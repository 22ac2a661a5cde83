"""What a server loads: ``gunicorn "app:create_app()"`` or ``flask run``."""

from blog import create_app

__all__ = ["create_app"]
