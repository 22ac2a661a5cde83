"""The example blog as tests have it: fixtures, and what its pages show."""

from __future__ import annotations

import fcntl
import importlib
import os
import re
import shutil
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

pytest.importorskip("docutils")

EXAMPLE = Path(__file__).parents[1] / "examples" / "flask_blog"
SECRET = "correct horse"


@pytest.fixture(scope="module")
def example() -> t.Iterator[None]:
    """Make the example's package importable, for one module only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLE)
        for name in ("BLOG_DATABASE", "BLOG_SECRET", "BLOG_SHELL", "FLASK_ISR_CACHE"):
            patch.delenv(name, raising=False)
        yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "blog"]:
        del sys.modules[name]


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database after the first start of the blog, made once for all processes of the tests."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    path = folder / "blog.db"
    with (folder / "blog.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            start = "import blog, sys; blog.create_app({'DATABASE': sys.argv[1]})"
            subprocess.run([sys.executable, "-c", start, f"{path}.new"], cwd=EXAMPLE, check=True)
            Path(f"{path}.new").rename(path)
    return path


@pytest.fixture
def app(filled: Path, tmp_path: Path) -> t.Iterator[Flask]:
    shutil.copy(filled, tmp_path / "blog.db")
    app: Flask = module("blog").create_app(
        {
            "BLOG_SECRET": SECRET,
            "DATABASE": tmp_path / "blog.db",
            "ISR_CACHE": f"file://{tmp_path}/pages",
            "ISR_ENABLED": True,
            "TESTING": True,
        }
    )
    yield app
    with app.app_context():
        app.extensions["isr"].middleware.close()


@pytest.fixture
def visitor(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def editor(app: Flask) -> FlaskClient:
    return app.test_client()


def module(name: str) -> t.Any:
    return importlib.import_module(name)


def form(**fields: str) -> dict[str, str]:
    return {"title": "T", "summary": "S", "body": "B", "tags": "", **fields}


def stamp(response: TestResponse) -> str:
    """When, why and by whom the page was rendered."""
    found = re.search(r"Rendered .* by worker \d+", re.sub("<.*?>", "", response.text))
    assert found
    return found[0]


def headings(response: TestResponse) -> list[str]:
    return re.findall(r"<h2><a [^>]*>(.*?)</a>", response.text)
