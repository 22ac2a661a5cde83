"""Commands on a middleware that stands in a module of its own."""

from __future__ import annotations

import inspect
import sys
import types
import typing as t

import pytest
from click.testing import CliRunner, Result
from conftest import Make

from wsgi_isr.__main__ import main

BASE = "http://localhost"
#: Before click 8.2 the two streams of a command are one, unless this is said.
SEPARATE: dict[str, t.Any] = (
    {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}
)


class Command:
    def __init__(self, module: types.ModuleType) -> None:
        self.module = module

    def __call__(self, *args: str, app: str = "app", input: str | None = None) -> Result:
        name = f"{self.module.__name__}:{app}"
        return CliRunner(**SEPARATE).invoke(main, [name, *args], input=input)


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("a_module_of_a_test")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


@pytest.fixture
def command(module: types.ModuleType, make: Make, files: str) -> Command:
    """Commands on a middleware whose pages are on http://localhost."""
    module.app = make(files, base_url=BASE)  # type: ignore[attr-defined]
    return Command(module)


@pytest.fixture
def elsewhere(module: types.ModuleType, make: Make, files: str) -> Command:
    """Commands on a middleware that does not know where its pages are."""
    module.app = make(files)  # type: ignore[attr-defined]
    return Command(module)
