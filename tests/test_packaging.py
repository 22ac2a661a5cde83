"""What is installed, and whether README.md tells the truth about it."""

from __future__ import annotations

import configparser
import email
import importlib
import importlib.metadata
import importlib.resources
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import typing as t
import zipfile
from pathlib import Path

import pytest
from conftest import status_of
from werkzeug.test import Client

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


class TestDistribution:
    def test_setup_cfg_only_lays_out_the_package(self) -> None:
        # setuptools would ignore [metadata] beside [project], with a warning only.
        config = configparser.ConfigParser()
        config.read(ROOT / "setup.cfg", "utf-8")
        assert {name.partition(".")[0] for name in config.sections()} == {"options"}

    def test_is_typed(self) -> None:
        assert importlib.resources.files("wsgi_isr").joinpath("py.typed").is_file()

    def test_the_installed_version_is_the_projects(self) -> None:
        assert importlib.metadata.version("wsgi-isr") == PROJECT["version"]

    def test_the_changelog_begins_with_the_version(self) -> None:
        changes = (ROOT / "CHANGES.rst").read_text("utf-8")
        assert changes.startswith(f"Version {PROJECT['version']}\n")

    def test_each_python_that_it_is_for_is_classified(self) -> None:
        oldest = int(PROJECT["requires-python"].removeprefix(">=3."))
        minors = [
            int(minor)
            for classifier in PROJECT["classifiers"]
            for minor in re.findall(r"Python :: 3\.(\d+)$", classifier)
        ]
        assert minors == [*range(oldest, oldest + len(minors))]
        assert len(minors) >= 3

    def test_extras_that_texts_name_exist(self) -> None:
        sources = [*(ROOT / "src" / "wsgi_isr").rglob("*.py"), *(ROOT / "docs").glob("*.md")]
        texts = [README, *(path.read_text("utf-8") for path in sources)]
        named = {extra for text in texts for extra in re.findall(r"wsgi-isr\[([\w,]+)\]", text)}
        assert {"cli", "flask", "redis"} <= named
        assert {name for names in named for name in names.split(",")} <= {*EXTRAS}

    def test_each_requirement_has_a_lower_bound_and_no_other(self) -> None:
        # Of what the library needs itself: an upper bound would hold back the apps that use it.
        extras = {*EXTRAS} - {"benchmarks", "dev", "example", "test"}
        needed = [*PROJECT["dependencies"], *(r for name in extras for r in EXTRAS[name])]
        assert len(needed) > 10
        assert not [text for text in needed if not re.fullmatch(r"[\w-]+>=[\d.]+", text)]

    def test_import_needs_no_extra(self) -> None:
        extras = "brotli click django docutils flask gunicorn itsdangerous jinja2 pymemcache pytest"
        code = "import sys, wsgi_isr; print(*sorted(m.partition('.')[0] for m in sys.modules))"
        loaded = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, check=True, text=True
        ).stdout
        assert not set(loaded.split()) & {*extras.split(), "redis", "valkey", "zstandard"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is uploaded, built from a copy of the folder that the tests are in."""
    folder = tmp_path_factory.mktemp("built")
    # Not what earlier builds and other programs left behind: it would get in.
    rubbish = shutil.ignore_patterns(".git", ".venv*", "*.egg-info", "build", "node_modules")
    shutil.copytree(ROOT, folder / "copy", ignore=rubbish)
    code = (
        "from setuptools import build_meta\n"
        "build_meta.build_sdist('..')\n"
        "build_meta.build_wheel('..')\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        cwd=folder / "copy",
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class TestBuilds:
    @pytest.fixture
    def wheel(self, built: Path) -> zipfile.ZipFile:
        (path,) = built.glob("*.whl")
        return zipfile.ZipFile(path)

    def test_the_wheel_has_all_of_the_package_and_nothing_else(
        self, wheel: zipfile.ZipFile
    ) -> None:
        source = ROOT / "src"
        package = {
            str(path.relative_to(source))
            for path in (source / "wsgi_isr").rglob("*")
            if path.is_file() and path.suffix != ".pyc"
        }
        assert {"wsgi_isr/py.typed", "wsgi_isr/store/redis.lua"} <= package
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        assert names == package

    def test_the_wheel_says_what_it_is(self, wheel: zipfile.ZipFile) -> None:
        (path,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        found = email.message_from_bytes(wheel.read(path))
        assert found["Name"] == PROJECT["name"]
        assert found["Version"] == PROJECT["version"]
        assert found["Summary"] == PROJECT["description"]
        assert found["Requires-Python"] == PROJECT["requires-python"]
        assert found["License-Expression"] == PROJECT["license"]
        assert found.get_all("License-File") == PROJECT["license-files"]
        assert found.get_all("Classifier") == PROJECT["classifiers"]
        assert found.get_all("Provides-Extra") == [*EXTRAS]
        assert wheel.read(path).decode().endswith(README)

    def test_the_sdist_has_what_runs_the_tests(self, built: Path) -> None:
        (path,) = built.glob("*.tar.gz")
        with tarfile.open(path) as archive:
            names = {name.partition("/")[2] for name in archive.getnames()}
        wanted = {str(path.relative_to(ROOT)) for path in (ROOT / "tests").glob("*.py")}
        wanted |= {f".ci/{path.name}" for path in (ROOT / ".ci").iterdir() if path.is_file()}
        wanted |= {"CHANGES.rst", "LICENSE.txt", "README.md", "SECURITY.md", "docs/stores.md"}
        assert not {name for name in wanted if name not in names}


def test_security_md_names_tests_that_exist() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "SECURITY.md").read_text("utf-8")))
    assert len(named) > 10
    assert not [name for name in named if not (ROOT / "tests" / f"{name}.py").is_file()]


def commands(mark: str) -> str:
    """The shell block that follows a text in README.md."""
    found = re.search(re.escape(mark) + r".*?```sh\n(.+?)\n```", README, re.DOTALL)
    assert found
    return found[1]


class TestCommands:
    def test_each_is_one_line(self) -> None:
        for mark in ("<http://127.0.0.1:8000>", "<!-- the tests -->"):
            assert "\n" not in commands(mark)

    def test_ci_runs_the_tests_as_the_readme_says(self) -> None:
        script = (ROOT / ".ci" / "run").read_text("utf-8")
        (read,) = re.findall(r"^tests=.*$", script, re.MULTILINE)
        taken = subprocess.run(
            ["bash", "-euc", f'{read}; printf %s "$tests"'],
            capture_output=True,
            check=True,
            cwd=ROOT,
            text=True,
        ).stdout
        assert taken == commands("<!-- the tests -->")
        assert '-c "$tests"' in script


class TestReadme:
    """Its Python blocks are two programs: one without a framework, one with Flask."""

    @pytest.fixture
    def program(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> t.Callable[[str], t.Any]:
        """Import the blocks of README.md under a name, in a new folder."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setenv("REVALIDATE_TOKEN", "correct horse")
        blocks = re.findall(r"^```python\n(.+?)^```$", README, re.DOTALL | re.MULTILINE)
        with_flask = next(i for i, block in enumerate(blocks) if "Flask(" in block)

        def load(name: str, number: int | None = None) -> t.Any:
            own = {"plain": blocks[:with_flask], "with_flask": blocks[with_flask:]}[name]
            name = f"readme_{name}"
            Path(f"{name}.py").write_text("\n".join(own[:number]), "utf-8")
            monkeypatch.delitem(sys.modules, name, raising=False)
            return importlib.import_module(name)

        return load

    def test_a_plain_app(self, program: t.Any) -> None:
        module = program("plain", 1)
        client = Client(module.app)
        first, second = client.get("/"), client.get("/")
        assert status_of(first) == "isr; fwd=uri-miss; stored"
        assert status_of(second).startswith("isr; hit; ttl=")
        assert first.text == second.text
        assert first.text.startswith("Rendered at ")
        assert not [name for name in second.headers.keys() if name.startswith("ISR")]
        assert Path(".isr-cache").is_dir()
        module.app.close()

    def test_rules(self, program: t.Any) -> None:
        module = program("plain")
        client = Client(module.app)
        for path, fresh in (("/blog/a?page=2", "hit"), ("/blog/a?page=3", "fwd=uri-miss")):
            client.get("/blog/a?utm=1&page=2")
            assert status_of(client.get(path)).startswith(f"isr; {fresh}")
        (tags,) = {page.tags for page in module.app.pages()}
        assert tuple(tags) == ("posts",)
        module.app.close()

    def test_flask(self, program: t.Any) -> None:
        module = program("with_flask")
        Path("posts").mkdir()
        Path("posts/hello.html").write_text("old")
        client = module.app.test_client()
        assert status_of(client.get("/blog/hello")) == "isr; fwd=uri-miss; stored"
        Path("posts/hello.html").write_text("new")
        hit = client.get("/blog/hello")
        assert (hit.text, status_of(hit)[:8]) == ("old", "isr; hit")
        assert client.get("/api/revalidate?secret=x").status_code == 401
        assert client.get("/api/revalidate?secret=correct horse").json == {"revalidated": True}
        hit = client.get("/blog/hello")
        assert (hit.text, status_of(hit)[:8]) == ("new", "isr; hit")
        missing = client.get("/blog/missing")
        assert (missing.status_code, status_of(missing)) == (404, "isr; fwd=uri-miss; stored")
