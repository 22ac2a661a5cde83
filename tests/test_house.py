"""The checks of the source find what they are for: each is shown a small tree with one fault."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import tomllib
import typing as t
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CI = ROOT / ".ci"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package named as ours is, with nothing in it."""
    folder = tmp_path / "src" / "wsgi_isr"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    return folder


def write(folder: Path, **modules: str) -> None:
    """Write modules; ``a__b`` is the module ``b`` in the package ``a``."""
    for name, code in modules.items():
        path = folder / f"{name if name == '__init__' else name.replace('__', '/')}.py"
        path.parent.mkdir(exist_ok=True)
        if path.parent != folder:
            (path.parent / "__init__.py").touch()
        path.write_text(code, "utf-8")


def run(script: str, *arguments: str | Path) -> tuple[int, str]:
    done = subprocess.run([sys.executable, CI / script, *arguments], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_ci_runs_each_of_its_programs() -> None:
    script, core = ((CI / name).read_text("utf-8") for name in ("run", "core"))
    programs = {path.name for path in CI.iterdir() if path.is_file()} - {"run"}
    assert len(programs) > 3
    assert not {name for name in programs if f".ci/{name}" not in script + core}


class TestPrivateNames:
    @pytest.mark.parametrize(
        "code",
        [
            "import _thread",
            "import werkzeug._internal",
            "from werkzeug._internal import missing",
            "from werkzeug.http import _token_re",
            "from werkzeug import _internal",
            "from _typeshed import wsgi",
            "import werkzeug.http as http\nhttp._own()",
            "from werkzeug import http\nhttp._own()",
            "def f(client): client._pool.close()",
            "def f(client): client._pool = None",
            "def f(client): return getattr(client, '_pool', None)",
            "def f(client): setattr(client, '_pool', None)",
            "def f(client): object.__setattr__(client, '_pool', None)",
            "def f(client): return client.__dict__['_pool']",
            "def f(client): return vars(client)['_pool']",
            "import operator\nf = operator.attrgetter('x._pool')",
            "class A:\n    def f(self): return self._not_defined",
            "import threading\nclass A(threading.Thread):\n    def f(self): self._started = 1",
            "from cachelib import BaseCache\nclass A(BaseCache):\n"
            "    def _normalize_timeout(self, timeout): return timeout",
            "from queue import Queue\nclass A(Queue[int]):\n    def _init(self, size): pass",
        ],
    )
    def test_of_others_are_found(self, package: Path, code: str) -> None:
        write(package, own="def _own(): pass", found=code)
        status, output = run("private_names.py", package)
        assert status == 1
        assert "found.py:" in output
        assert output.endswith("\n3 files, 1 private names\n")

    @pytest.mark.parametrize(
        "code",
        [
            "from .own import _own",
            "from wsgi_isr.own import _own",
            "from . import own\nown._own()",
            "def f(thing): return thing._slot, thing._attribute, thing._method()",
            "def f(thing): return getattr(thing, '_slot')",
            "import typing as t\nif t.TYPE_CHECKING:\n    from _typeshed.wsgi import StartResponse",
            "def f(named_tuple): return named_tuple._replace(a=2)._asdict()",
            "import os\nos._exit(1)",
            "from flask import g\ng._isr = g._isr_page = 1",
            "import threading\nclass A(threading.Thread):\n    def f(self): self._mine = 1",
            "def f(thing): return thing.__dict__, getattr(thing, '__call__')",
        ],
    )
    def test_of_our_own_are_not(self, package: Path, code: str) -> None:
        own = (
            "def _own(): pass\n"
            "class Own:\n"
            "    __slots__ = ('_slot',)\n"
            "    def _method(self): self._attribute = 1\n"
        )
        write(package, own=own, code=code)
        assert run("private_names.py", package) == (0, "3 files, 0 private names\n")


class TestCircles:
    @pytest.fixture(autouse=True)
    def tool(self) -> None:
        pytest.importorskip("grimp")

    @pytest.mark.parametrize(
        "back",
        [
            "from . import b",
            "def later():\n    from .b import f",
            "import typing as t\nif t.TYPE_CHECKING:\n    from .b import f",
            "from .c import f",
            "from . import f",
        ],
        ids=["plain", "deferred", "types", "over a third", "over the package"],
    )
    def test_are_found(self, package: Path, back: str) -> None:
        write(package, __init__="from .b import f", b="from . import a", c="from . import b")
        (package / "a.py").write_text(back, "utf-8")
        status, output = run("cycles.py", package.parent, package.name)
        assert status == 1
        assert "  wsgi_isr.b imports wsgi_isr.a\n" in output
        assert output.endswith(" 1 circles\n")

    def test_are_not_seen_in_a_package_that_exports_from_its_modules(self, package: Path) -> None:
        write(package, __init__="from .b import f", b="from .a import f", a="def f(): pass")
        assert run("cycles.py", package.parent, package.name) == (
            0,
            "3 modules, 2 imports, 0 circles\n",
        )


class TestLayers:
    """The list in pyproject.toml, for a package of empty modules with these names."""

    @pytest.fixture(autouse=True)
    def empty(self, package: Path) -> None:
        pytest.importorskip("importlinter")
        pyproject = (ROOT / "pyproject.toml").read_text("utf-8")
        (package.parent / "pyproject.toml").write_text(pyproject, "utf-8")
        contracts = tomllib.loads(pyproject)["tool"]["importlinter"]["contracts"]
        for contract in contracts:
            for container in contract.get("containers", ()):
                folder = package.parent / container.replace(".", "/")
                folder.mkdir(exist_ok=True)
                (folder / "__init__.py").touch()
                for layer in contract["layers"]:
                    for module in layer.split(" | "):
                        (folder / f"{module.strip('()')}.py").touch()
        (package / "store.py").unlink()

    def lint(self, package: Path) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"]
            + ["--no-cache"],
            capture_output=True,
            cwd=package.parent,
            env={**os.environ, "PYTHONPATH": str(package.parent)},
            text=True,
        )
        return done.returncode, done.stdout + done.stderr

    def test_are_kept_by_modules_that_import_downwards(self, package: Path) -> None:
        write(package, middleware="from . import page\nfrom .store import opening")
        status, output = self.lint(package)
        assert (status, " 0 broken" in output) == (0, True), output

    @pytest.mark.parametrize(
        ("module", "code"),
        [
            ("page", "from .store.protocol import Store"),
            ("page", "def later():\n    from .store.protocol import Store"),
            ("page", "import typing as t\nif t.TYPE_CHECKING:\n    from .store import protocol"),
            ("store__protocol", "def later():\n    from . import opening"),
            ("middleware", "from . import testing"),
            ("unheard_of", ""),
        ],
    )
    def test_are_broken_by_others(self, package: Path, module: str, code: str) -> None:
        write(package, **{module: code})
        status, output = self.lint(package)
        assert status == 1
        assert module.rpartition("__")[2] in output


LIMITS = runpy.run_path(str(ROOT / ".ci" / "budgets.py"))


class TestBudgets:
    def count(self, package: Path, tests: int = 1) -> tuple[int, str]:
        folder = package.parents[1] / "tests"
        folder.mkdir()
        (folder / "test_it.py").write_text("x = 1\n" * tests)
        (folder / "test_django_it.py").write_text("x = 1\n" * 1000)
        return run("budgets.py", package.parents[1])

    def test_count_lines_and_code(self, package: Path) -> None:
        text = '"""What\nit is."""\n\n# Why.\nx = (\n    1,\n)\n\n\n'
        text += 'def f():\n    """Is."""\n    return x\n'
        write(package, a=text, store__b="y = 1\n", testing__c="z = 1\n" * 1000)
        (package / "store" / "d.lua").write_text("-- Why.\n\nreturn 1\n")
        status, output = self.count(package)
        assert status == 0, output
        assert f"lines of source: 16 of at most {LIMITS['MAX_LINES']:,}\n" in output
        assert f"files of source: 5 of at most {LIMITS['MAX_FILES']:,}\n" in output
        assert "lines of code: 7\n" in output
        assert "longest file: a.py, 12 lines\n" in output
        assert "apart: 1,000 lines, 2 files\n" in output

    def test_fail_over_the_lines_of_a_file(self, package: Path) -> None:
        most = LIMITS["MAX_LINES_OF_A_FILE"]
        write(package, a="x = 1\n" * (most + 1))
        status, output = self.count(package)
        assert status == 1
        assert f"over budget: src/wsgi_isr/a.py: {most + 1} lines of at most {most}\n" in output

    @pytest.mark.parametrize(
        ("files", "of_each", "tests", "what"),
        [
            (40, -(-LIMITS["MAX_LINES"] // 40) + 1, 0, "lines of source: "),
            (LIMITS["MAX_FILES"], 1, 0, "files of source: 1 too many\n"),
            (1, 100, 201, "lines of tests: 1 too many\n"),
        ],
    )
    def test_fail_over_a_sum(
        self, package: Path, files: int, of_each: int, tests: int, what: str
    ) -> None:
        write(package, **{f"m{number}": "x = 1\n" * of_each for number in range(files)})
        status, output = self.count(package, tests)
        assert status == 1
        assert f"\nover budget: {what}" in output
        assert output.count("over budget") == 1


class TestLowest:
    def of(self, folder: Path, **extras: t.Any) -> tuple[int, str]:
        text = '[project]\nname = "own"\ndependencies = ["first>=1.2"]\n'
        text += "[project.optional-dependencies]\n"
        text += "".join(f"{name} = {needed!r}\n" for name, needed in extras.items())
        (folder / "pyproject.toml").write_text(text, "utf-8")
        return run("lowest.py", "test", folder / "pyproject.toml")

    def test_follows_own_extras(self, tmp_path: Path) -> None:
        linux = "; sys_platform == 'linux'"
        test = ["own[a,b]", f"third>=3{linux}", "fourth[more]>=4.0.1,<5"]
        assert self.of(tmp_path, test=test, a=["own[b]"], b=["second >= 2"], c=["no>=1"]) == (
            0,
            f"first==1.2\nfourth==4.0.1\nsecond==2\nthird==3{linux}\n",
        )

    @pytest.mark.parametrize("needed", [["second"], ["second<2"], ["First>=1.3"]])
    def test_refuses_what_has_no_bound_or_two(self, tmp_path: Path, needed: list[str]) -> None:
        status, output = self.of(tmp_path, test=needed)
        assert status == 1
        assert "lower bound" in output
