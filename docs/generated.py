"""What the reference takes from the code: ``<!-- generated: NAME -->`` in a page stands for it.

``<!-- text: NAME -->`` stands for a text of the root.

``reference.toml`` has what the code does not say: since which version something is there, and the
units of numbers. Whatever is missing there is a `KeyError`.
"""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
import typing as t
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import click

from wsgi_isr import ISRMiddleware, Rule, signals
from wsgi_isr.cli import group
from wsgi_isr.flask import ISR, isr_page
from wsgi_isr.metadata import ISR_HEADERS
from wsgi_isr.refusals import REMEDIES
from wsgi_isr.views import Declaration

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "wsgi_isr"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
FACTS: dict[str, dict[str, t.Any]] = tomllib.loads(
    Path(__file__).with_name("reference.toml").read_text("utf-8")
)


def table(head: str, rows: Iterable[Iterable[str]]) -> str:
    columns = head.split(" | ")
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def markdown(docstring: str) -> str:
    """A docstring's text in one line of a table."""
    return " ".join(docstring.replace("``", "`").split()).replace("|", "\\|")


def parameters(docstring: str | None) -> dict[str, str]:
    """What a docstring says of each parameter."""
    text = inspect.cleandoc(docstring or "")
    found = re.findall(r"^:param (\w+): (.+?)(?=^:|^\S|^\n|\Z)", text, re.DOTALL | re.MULTILINE)
    return {name: markdown(meaning) for name, meaning in found}


def default(parameter: inspect.Parameter) -> str:
    if parameter.default is inspect.Parameter.empty:
        return ""
    value = parameter.default
    if isinstance(value, int) and value >= 2**20:
        return f"{value // 2**20} MiB"
    return f"`{value!r}`"


def arguments(kind: str, function: t.Any, docstring: str | None, prefix: str = "") -> str:
    said, rows = parameters(docstring), []
    for name, parameter in inspect.signature(function).parameters.items():
        if name in ("self", "view"):
            continue
        since, *unit = FACTS[kind][name]
        rows.append([f"`{name}`", default(parameter), *(unit or [""]), since, said[name]])
    return table("argument | default | unit | since | meaning", rows)


def config_keys(framework: str, spell: Callable[[str], str]) -> str:
    """All arguments of the middleware as config keys, with what differs in a framework."""
    said, rows = parameters(ISRMiddleware.__doc__), []
    for name, parameter in inspect.signature(ISRMiddleware).parameters.items():
        if name == "app":
            continue
        since, *unit = FACTS["arguments"][name]
        value, meaning = FACTS[framework].get(name) or (default(parameter), said[name])
        if framework == "django":
            since = "0.2"
        rows.append([f"`{spell(name)}`", value, *(unit or [""]), since, meaning])
    for name, (since, value, meaning) in FACTS[f"{framework}_only"].items():
        rows.append([f"`{spell(name)}`", value, "", since, meaning])
    return table("key | default | unit | since | meaning", rows)


def facts(kind: str, head: str) -> str:
    return table(head, ([f"`{name}`", *cells] for name, cells in FACTS[kind].items()))


def _public(item: tuple[str, t.Any]) -> str | None:
    name, member = item
    is_one = callable(member) or isinstance(member, property | staticmethod)
    return name if is_one and not name.startswith("_") else None


def methods(kind: str, owner: type) -> str:
    rows, order = [], list(FACTS[kind])
    for name in sorted(filter(None, map(_public, vars(owner).items())), key=order.index):
        function = inspect.getattr_static(owner, name)
        if isinstance(function, staticmethod):
            function = function.__func__
        first = inspect.cleandoc(function.__doc__ or "").partition("\n\n")[0]
        rows.append([f"`{name}`", FACTS[kind][name], markdown(first)])
    return table("name | since | promise", rows)


def signal_rows() -> str:
    """Signals, with the texts that stand under them in their module."""
    body, rows = ast.parse((SOURCE / "signals.py").read_bytes()).body, []
    for node, after in zip(body, body[1:], strict=False):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if not name.startswith("_") and hasattr(getattr(signals, name), "connect"):
                text = ast.literal_eval(after.value)  # type: ignore[attr-defined]
                what, _, extra = text.partition("Extra: ")
                rows.append([f"`{name}`", FACTS["signals"][name], markdown(extra), markdown(what)])
    return table("signal | since | arguments | when", rows)


def headers() -> str:
    assert {name.lower() for name in FACTS["headers"]} >= ISR_HEADERS
    return facts("headers", "header | in | since | meaning")


def detail_words() -> str:
    """The words after ``detail=`` in Cache-Status, with the remedies that logs give."""
    rows = []
    for word, (since, meaning) in FACTS["details"].items():
        rows.append([f"`{word}`", since, meaning, markdown(REMEDIES.get(word, ""))])
    return table("`detail` | since | meaning | remedy", rows)


def log_calls() -> Iterator[tuple[str, str]]:
    """Level and text of each call of a logger with a literal text."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            owner = node.func.value
            if not (isinstance(owner, ast.Name) and owner.id == "logger"):
                continue
            level = {"exception": "error"}.get(node.func.attr, node.func.attr)
            text = node.args[1 if level == "log" else 0]
            if isinstance(text, ast.Constant):
                yield level, text.value


def log_messages() -> str:
    order = ("error", "warning", "log", "info", "debug")
    found = sorted(set(log_calls()), key=lambda call: (order.index(call[0]), call[1]))
    words = {"log": "warning or info"}
    rows = [[words.get(level, level), f"`{markdown(text)}`"] for level, text in found]
    return table("level | message", rows)


def commands() -> str:
    parts = []
    for name in sorted(group.commands):
        command = group.commands[name]
        context = click.Context(command, info_name=name)
        usage = " ".join([name, *command.collect_usage_pieces(context)])
        help = inspect.cleandoc(command.help or "").replace("\n\n", "\n\n")
        rows = [
            [", ".join(f"`{text}`" for text in option.opts), option.help or ""]
            for option in command.params
            if isinstance(option, click.Option)
        ]
        options = "\n" + table("option | meaning", rows) if rows else ""
        since = f"Since {FACTS['commands'][name]}."
        parts.append(f"## {name}\n\n`{usage}`\n\n{help} {since}\n{options}")
    return "\n".join(parts)


NAMES: dict[str, Callable[[], str]] = {
    "middleware": lambda: arguments("arguments", ISRMiddleware, ISRMiddleware.__doc__),
    "rule": lambda: arguments("rule", Rule, Rule.__doc__),
    "isr_page": lambda: arguments("isr_page", Declaration, type(isr_page).__doc__),
    "flask keys": lambda: config_keys("flask", lambda name: f"ISR_{name.upper()}"),
    "django keys": lambda: config_keys("django", str.upper),
    "checks": lambda: facts("checks", "id | since | it says"),
    "methods": lambda: methods("methods", ISRMiddleware),
    "flask methods": lambda: methods("flask_methods", ISR),
    "signals": signal_rows,
    "headers": headers,
    "detail words": detail_words,
    "log messages": log_messages,
    "commands": commands,
}


def text_of(name: str) -> str:
    """A text of the root, with links from ``docs``."""
    text = (ROOT / name).read_text("utf-8")
    text = re.sub(r"\]\(([A-Z]+\.md)\)", lambda found: f"]({found[1].lower()})", text)
    return text.replace("](docs/", "](")


def complete(text: str) -> str:
    text = re.sub(r"<!-- text: (.+) -->\n", lambda found: text_of(found[1]), text)
    return re.sub(r"<!-- generated: (.+) -->\n", lambda found: NAMES[found[1]](), text)
