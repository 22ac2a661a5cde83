"""The build id of a Flask app: another one for other code, the same on every machine."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from conftest import status_of
from flask import Blueprint, Flask
from flasks import COLD, flask_app, flask_browser

from wsgi_isr.flask import ISR, isr_page
from wsgi_isr.flask.pages import digest_of_app


def build_id(folder: Path, template_folder: str | None = "templates") -> str:
    return digest_of_app(
        Flask(
            "site",
            root_path=str(folder),
            instance_path=str(folder / "instance"),
            template_folder=template_folder,
        )
    )


def write(path: Path, text: str = "x") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """An app that is a package."""
    folder = tmp_path / "package"
    for name in ("__init__.py", "views.py", "blog/admin/forms.py", "templates/blog/post.html"):
        write(folder / name)
    return folder


@pytest.fixture
def module(tmp_path: Path) -> Path:
    """The folder of an app that is a single module, with a package beside it."""
    folder = tmp_path / "home"
    for name in ("app.py", "models.py", "shop/__init__.py", "shop/cart/views.py"):
        write(folder / name)
    write(folder / "templates" / "post.html")
    return folder


class TestThePackage:
    @pytest.mark.parametrize(
        "name",
        [
            "views.py",
            "new.py",
            "blog/admin/forms.py",
            "templates/blog/post.html",
            "templates/new.txt",
            "blog/templates/blog/list.html",
            "translations/de/LC_MESSAGES/messages.mo",
        ],
    )
    def test_another_file_makes_another_id(self, package: Path, name: str) -> None:
        before = build_id(package)
        write(package / name, "changed")
        assert build_id(package) != before

    def test_a_file_that_was_renamed_makes_another_id(self, package: Path) -> None:
        before = build_id(package)
        (package / "views.py").rename(package / "pages.py")
        assert build_id(package) != before

    def test_a_line_that_moved_to_another_file_makes_another_id(self, package: Path) -> None:
        write(package / "a.py", "one")
        write(package / "b.py", "two")
        before = build_id(package)
        write(package / "a.py", "onetwo")
        write(package / "b.py", "")
        assert build_id(package) != before

    @pytest.mark.parametrize(
        "name",
        [
            "notes.txt",
            "static/style.css",
            "static/script.py",
            "__pycache__/app.pyc",
            ".hidden/app.py",
            ".app.py.swp",
            "templates/.post.html.swp",
            "instance/config.py",
            "node_modules/x/gyp.py",
            "venv/lib/python3/site-packages/flask.py",
        ],
    )
    def test_what_is_not_the_apps_code_does_not_count(self, package: Path, name: str) -> None:
        before = build_id(package)
        write(package / name)
        if name.startswith("venv"):
            (package / "venv" / "pyvenv.cfg").touch()
        assert build_id(package) == before

    def test_templates_may_stand_elsewhere(self, package: Path, tmp_path: Path) -> None:
        elsewhere = tmp_path / "themes" / "blue"
        write(elsewhere / "post.html", "old")
        before = build_id(package, str(elsewhere))
        write(elsewhere / "post.html", "new")
        assert build_id(package, str(elsewhere)) != before

    def test_there_may_be_no_templates(self, package: Path) -> None:
        assert build_id(package, None) == build_id(package, None)


class TestAModule:
    @pytest.mark.parametrize(
        "name",
        [
            "app.py",
            "new.py",
            "shop/cart/views.py",
            "shop/new.py",
            "templates/post.html",
            "translations/de/LC_MESSAGES/messages.mo",
        ],
    )
    def test_modules_and_packages_beside_it_are_its_code(self, module: Path, name: str) -> None:
        before = build_id(module)
        write(module / name, "changed")
        assert build_id(module) != before

    @pytest.mark.parametrize("name", ["Downloads/tool.py", "src/other/__init__.py", "x/a/b/c.py"])
    def test_other_folders_beside_it_are_not(self, module: Path, name: str) -> None:
        before = build_id(module)
        write(module / name)
        assert build_id(module) == before

    def test_other_folders_are_not_even_read(
        self, module: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # As where the module stands in the root folder, or in a home folder with a million files.
        write(module / "Downloads" / "deep" / "tool.py")
        read: set[str] = set()
        scandir = os.scandir

        def watched(folder: str) -> object:
            read.add(os.path.relpath(folder, module))
            return scandir(folder)

        monkeypatch.setattr(os, "scandir", watched)
        build_id(module)
        assert read == {".", "shop", os.path.join("shop", "cart"), "templates", "translations"}


class TestABlueprint:
    """What stands elsewhere: in a package beside the app's, or in a folder without __init__.py."""

    def build_id(self, package: Path, root: Path, template_folder: str | None = "pages") -> str:
        app = flask_app(package)
        blog = Blueprint("blog", "blog", root_path=str(root), template_folder=template_folder)
        app.register_blueprint(blog)
        isr = ISR(app, cache="memory://")
        with app.app_context():
            return isr.middleware.build_id

    @pytest.mark.parametrize("name", ["views.py", "pages/post.html", "new/views.py"])
    def test_another_file_makes_another_id(self, package: Path, tmp_path: Path, name: str) -> None:
        before = self.build_id(package, tmp_path / "blog")
        write(tmp_path / "blog" / name, "changed")
        assert self.build_id(package, tmp_path / "blog") != before

    def test_of_the_app_itself_adds_its_templates_alone(self, module: Path) -> None:
        write(module / "Downloads" / "tool.py")
        assert self.build_id(module, module, None) == build_id(module)
        before = self.build_id(module, module)
        write(module / "pages" / "post.html")
        assert self.build_id(module, module) != before

    def test_that_is_installed_is_not_the_apps_code(self, package: Path, tmp_path: Path) -> None:
        installed = tmp_path / "site-packages" / "blog"
        assert self.build_id(package, installed) == build_id(package)


class TestOnAnotherMachine:
    @pytest.mark.parametrize("kind", ["package", "module"])
    def test_the_same_files_have_the_same_id(
        self,
        kind: str,
        tmp_path: Path,
        request: pytest.FixtureRequest,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        folder: Path = request.getfixturevalue(kind)
        before = build_id(folder)
        copy = tmp_path / "somewhere" / "else"
        shutil.copytree(folder, copy, copy_function=shutil.copyfile)
        for path in copy.rglob("*"):
            os.utime(path, (1, 1))
            path.chmod(0o700)
        # Another file system lists in another order.
        listdir, walk = os.listdir, os.walk
        monkeypatch.setattr(os, "listdir", lambda folder: sorted(listdir(folder), reverse=True))
        monkeypatch.setattr(os, "walk", lambda top: reversed(list(walk(top))))
        assert build_id(copy) == before

    def test_templates_elsewhere_have_the_same_id_too(self, package: Path, tmp_path: Path) -> None:
        ids = set()
        for where in ("here", "far/away/from/it"):
            write(tmp_path / where / "post.html", "the same")
            ids.add(build_id(package, str(tmp_path / where)))
        assert len(ids) == 1


class TestWhatCannotBeRead:
    def test_a_file_that_vanishes_is_passed_over(
        self, package: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = build_id(package)
        write(package / "vanishing.py")
        isfile = os.path.isfile

        def late(path: str) -> bool:
            found = isfile(path)
            if str(path).endswith("vanishing.py"):
                os.unlink(path)
            return found

        monkeypatch.setattr(os.path, "isfile", late)
        assert build_id(package) == before

    def test_what_is_no_file_is_passed_over(self, package: Path) -> None:
        before = build_id(package)
        os.mkfifo(package / "pipe.py")
        (package / "folder.py").mkdir()
        (package / "broken.py").symlink_to("nowhere")
        assert build_id(package) == before

    def test_a_name_that_is_no_text_is_a_name(self, package: Path) -> None:
        before = build_id(package)
        with open(os.fsencode(package) + b"/\xff.py", "wb") as file:
            file.write(b"x")
        assert build_id(package) != before

    def test_a_folder_that_is_not_there_has_an_id(self, tmp_path: Path) -> None:
        assert build_id(tmp_path / "nowhere") == build_id(tmp_path / "no-such-folder")


class TestPages:
    def app(self, folder: Path) -> Flask:
        app = flask_app(folder)
        app.get("/")(isr_page(lambda: "home"))
        return app

    def test_of_older_code_are_kept_away(self, tmp_path: Path) -> None:
        flask_browser(self.app(tmp_path), cache=None).get("/")
        Path(tmp_path, "app.py").write_text("newer code")
        assert status_of(flask_browser(self.app(tmp_path), cache=None).get("/")) == COLD

    def test_of_code_that_is_replaced_before_the_first_request_are_those_of_the_code_that_runs(
        self, package: Path
    ) -> None:
        app = Flask("site", root_path=str(package), instance_path=str(package / "instance"))
        isr = ISR(app, cache="memory://")
        before = build_id(package)
        write(package / "views.py", "newer")
        with app.app_context():
            assert isr.middleware.build_id == before != build_id(package)

    def test_of_older_code_are_there_when_it_comes_back(self, tmp_path: Path) -> None:
        flask_browser(self.app(tmp_path), cache=None).get("/")
        Path(tmp_path, "app.py").write_text("newer code")
        flask_browser(self.app(tmp_path), cache=None).get("/")
        Path(tmp_path, "app.py").unlink()
        assert status_of(flask_browser(self.app(tmp_path), cache=None).get("/")) == "isr; hit"

    def test_of_older_code_are_served_as_stale_ones_where_that_is_asked_for(
        self, tmp_path: Path
    ) -> None:
        old = flask_browser(self.app(tmp_path), cache=None)
        old.get("/")
        old.isr.close()
        Path(tmp_path, "app.py").write_text("newer code")
        app = self.app(tmp_path)
        app.config["ISR_PREVIOUS_BUILDS"] = 1
        browser = flask_browser(app, cache=None)
        assert status_of(browser.get("/")) == "isr; hit; ttl=0"
        browser.isr.close()
        assert status_of(browser.get("/")) == "isr; hit"

    def test_have_the_id_that_was_told(self, tmp_path: Path) -> None:
        app = self.app(tmp_path)
        app.config["ISR_BUILD_ID"] = "release 7"
        assert flask_browser(app).isr.build_id == "release 7"
