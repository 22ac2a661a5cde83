"""The site of ``served.py`` as ``flask run`` finds it."""

from __future__ import annotations

from flask import Flask
from served import application

app = Flask(__name__)
app.wsgi_app = application  # type: ignore[method-assign]
