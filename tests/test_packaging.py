"""What is installed and uploaded, and the commands of README.md; `test_docs` runs its programs."""

from __future__ import annotations

import configparser
import email
import importlib.metadata
import importlib.resources
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

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
        sources = [*(ROOT / "src" / "wsgi_isr").rglob("*.py"), *(ROOT / "docs").rglob("*.md")]
        texts = [README, *(path.read_text("utf-8") for path in sources)]
        named = {extra for text in texts for extra in re.findall(r"wsgi-isr\[([\w,]+)\]", text)}
        assert {"cli", "flask", "redis"} <= named
        assert {name for names in named for name in names.split(",")} <= {*EXTRAS}

    def test_each_requirement_has_a_lower_bound_and_no_other(self) -> None:
        # Of what the library needs itself: an upper bound would hold back the apps that use it.
        extras = {*EXTRAS} - {"benchmarks", "dev", "docs", "example", "test", "test-core"}
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
        assert found.get_all("Project-URL")
        assert wheel.read(path).decode().endswith(README)

    def test_the_sdist_has_what_runs_the_tests(self, built: Path) -> None:
        (path,) = built.glob("*.tar.gz")
        with tarfile.open(path) as archive:
            names = {name.partition("/")[2] for name in archive.getnames()}
        wanted = {str(path.relative_to(ROOT)) for path in (ROOT / "tests").glob("*.py")}
        wanted |= {f".ci/{path.name}" for path in (ROOT / ".ci").iterdir() if path.is_file()}
        wanted |= {f"{name}.md" for name in ("CONTRIBUTING", "README", "SECURITY", "docs/stores")}
        wanted |= {"CHANGES.rst", "LICENSE.txt", "docs/conf.py", ".pre-commit-config.yaml"}
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
