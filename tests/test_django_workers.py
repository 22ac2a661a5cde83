"""A Django project as it is deployed: gunicorn's workers, commands, the worker of a task queue."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import HOST, Folder, Server

pytestmark = pytest.mark.processes

SETTINGS = """
from pathlib import Path
BASE_DIR = Path(__file__).parent.parent
ALLOWED_HOSTS = ["site.example", "testserver"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": BASE_DIR / "db.sqlite3"}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = ["blog.apps.BlogConfig", "wsgi_isr.django"]
ISR = {"BASE_URL": "http://site.example"}
MIDDLEWARE = ["django.middleware.common.CommonMiddleware"]
ROOT_URLCONF = "project.urls"
SECRET_KEY = "not a secret, but long enough for it"
WSGI_APPLICATION = "project.wsgi.application"
"""
WSGI = """
import os
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
from wsgi_isr.django import get_wsgi_application
isr = get_wsgi_application()

def application(environ, start_response):
    def start(status, headers, *args):
        return start_response(status, [*headers, ("X-Worker", str(os.getpid()))], *args)
    return isr(environ, start)
"""
APPS = """
from django.apps import AppConfig

class BlogConfig(AppConfig):
    name = "blog"
    def ready(self):
        from wsgi_isr.django import track
        from .models import Post
        track(Post)
"""
MODELS = """
from django.db import models

class Post(models.Model):
    title = models.CharField(max_length=100)
"""
URLS = """
from django.db import transaction
from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import path
from blog.models import Post
from wsgi_isr.django import isr_page, tag

@isr_page(tags=lambda request, pk: [tag(Post)])
def post(request, pk):
    return HttpResponse(get_object_or_404(Post, pk=pk).title)

@transaction.atomic
def save(request, title):
    Post.objects.update_or_create(pk=1, defaults={"title": title})
    if title == "wrong":
        transaction.set_rollback(True)
    return HttpResponse("saved")

urlpatterns = [
    path("-/ready", lambda request: HttpResponse("")),
    path("posts/<int:pk>", post, name="post"),
    path("save/<title>", save),
]
"""
MANAGE = """
import os, sys
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
from django.core.management import execute_from_command_line
execute_from_command_line(sys.argv)
"""
FILES = {
    "project/__init__.py": "",
    "project/settings.py": SETTINGS,
    "project/wsgi.py": WSGI,
    "project/urls.py": URLS,
    "blog/__init__.py": "",
    "blog/apps.py": APPS,
    "blog/models.py": MODELS,
    "manage.py": MANAGE,
}


class Project:
    def __init__(self, path: Path) -> None:
        self.path = path
        for name, text in FILES.items():
            file = path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        self.python("manage.py", "migrate", "--run-syncdb", "--verbosity=0")

    def python(self, *args: str, check: bool = True) -> str:
        environ = {**os.environ, "DJANGO_SETTINGS_MODULE": "project.settings"}
        ended = subprocess.run(
            [sys.executable, *args], cwd=self.path, env=environ, capture_output=True, text=True
        )
        assert not check or ended.returncode == 0, ended.stderr
        return ended.stdout + ended.stderr


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("django") / "site")


@pytest.fixture(scope="module")
def server(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    def command(port: int, path: Path) -> list[str]:
        config = path / "gunicorn.conf.py"
        config.write_text(
            f"bind = '127.0.0.1:{port}'\nworkers = 3\nthreads = 4\nchdir = {str(project.path)!r}\n"
            "control_socket_disable = True\n"
        )
        return [sys.executable, "-m", "gunicorn", "-c", str(config), "project.wsgi"]

    server = Server(command, Folder(tmp_path_factory.mktemp("server") / "folder"), workers=3)
    server.start()
    yield server
    server.stop()


def texts(server: Server) -> set[str]:
    return {answer.body for answer in server.from_all_workers("posts/1").values()}


def test_a_save_reaches_all_workers(server: Server) -> None:
    assert HOST == "site.example"
    for title in ("one", "two"):
        server.get(f"save/{title}")
        assert texts(server) == {title}
    server.get("save/wrong")
    assert texts(server) == {"two"}


def test_commands_act_on_what_workers_serve(server: Server, project: Project) -> None:
    server.get("save/three")
    server.get("posts/1")
    # The same store and build, from wherever a command is called.
    shown = project.python(
        str(project.path / "manage.py"), "isr", "list", "--settings=project.settings"
    )
    assert "http://site.example/posts/1" in shown and "Warning" not in shown
    assert "no issues" in project.python("manage.py", "check")


def test_a_task_queue_revalidates_what_it_changes(server: Server, project: Project) -> None:
    server.get("save/before")
    assert texts(server) == {"before"}
    project.python(
        "-c",
        """
import django
django.setup()
from django.db import transaction
from blog.models import Post
from wsgi_isr.django import revalidate
with transaction.atomic():
    Post.objects.filter(pk=1).update(title="after")
    revalidate("/posts/1")
with transaction.atomic():
    Post.objects.filter(pk=1).update(title="wrong")
    revalidate("/posts/1")
    transaction.set_rollback(True)
import sys
assert "project.wsgi" not in sys.modules
""",
    )
    assert texts(server) == {"after"}


def test_the_check_finds_a_wsgi_file_of_django_alone(tmp_path: Path) -> None:
    project = Project(tmp_path / "site")
    wsgi = project.path / "project" / "wsgi.py"
    wsgi.write_text(WSGI.replace("wsgi_isr.django import", "django.core.wsgi import"))
    assert "isr.W008" in project.python("manage.py", "check")
