"""The documentation is true: its programs run, what it names exists, and what exists it names."""

from __future__ import annotations

import inspect
import re
import runpy
import sys
import tempfile
import typing as t
from pathlib import Path
from xml.etree import ElementTree

import pytest
from documents import ROOT, SERVERS, TEXTS, Page, blocks

from wsgi_isr import ISRMiddleware, signals
from wsgi_isr.cli import group
from wsgi_isr.flask import ISR
from wsgi_isr.store.opening import KINDS, plan

sys.path.insert(0, str(ROOT / "docs"))

import generated  # noqa: E402

DIAGRAMS = ROOT / "docs" / "diagrams"
CODE = {path: path.read_text("utf-8") for path in (ROOT / "src" / "wsgi_isr").rglob("*.py")}


def marked(name: str) -> t.Any:
    """A page, and the markers of what it needs."""
    marks = []
    words = {
        line.split()[0]
        for block in blocks(TEXTS[name])
        for line in block.code.split("\n")
        if line.split()
    }
    if words & {*SERVERS, "django-admin"}:
        marks.append(pytest.mark.processes)
    if words & {"django-admin", "wagtail", "apache2"}:
        marks.append(pytest.mark.slow)
    if words & {"apache2", "redis-server"}:
        marks.append(pytest.mark.servers)
    return pytest.param(name, marks=marks)


@pytest.mark.parametrize(
    "name", [marked(name) for name in TEXTS if next(blocks(TEXTS[name]), None)]
)
def test_a_page_runs_as_printed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, use in {"sqlalchemy": "from sqlalchemy", "wagtail": "wagtail start"}.items():
        if use in TEXTS[name]:
            pytest.importorskip(module)
    # Not in a folder of pytest: a server that gives up its rights could not read there.
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        folder.chmod(0o777)
        monkeypatch.chdir(folder)
        with Page(name, folder) as page:
            page.run_all()


class TestTheReference:
    @pytest.mark.parametrize("name", generated.NAMES)
    def test_has_all_that_the_code_has(self, name: str) -> None:
        rows = generated.NAMES[name]().splitlines()
        assert len(rows) > 3
        # The meaning is the last cell, but where it is a remedy.
        empty = [row for row in rows if row.endswith("|  |") and name != "detail words"]
        assert empty == []

    def test_has_nothing_else(self) -> None:
        facts = generated.FACTS
        there = {
            "arguments": inspect.signature(ISRMiddleware).parameters,
            "signals": vars(signals),
            "commands": group.commands,
            "methods": vars(ISRMiddleware),
            "flask_methods": vars(ISR),
        }
        for kind, names in there.items():
            assert not set(facts[kind]) - set(names), kind

    def test_has_the_keys_and_the_checks_of_django(self) -> None:
        text = "".join(CODE[path] for path in CODE if "django" in path.parts)
        assert set(re.findall(r'"(isr\.[EIW]\d+)"', text)) == set(generated.FACTS["checks"])
        new = set(generated.FACTS["django_only"])
        arguments = {name.upper() for name in inspect.signature(ISRMiddleware).parameters}
        assert set(re.findall(r'option\("(\w+)"', text)) <= arguments | new
        assert [key for key in new if f'"{key}"' not in text] == []

    def test_has_each_word_of_cache_status(self) -> None:
        code, words = "".join(CODE.values()), set(generated.FACTS["details"])
        used = re.findall(
            r"(?:Refusal\(|detail = |detail=)\"([a-z-]+)\"|; detail=([a-z-]+)\b", code
        )
        assert {first or second for first, second in used} - words == set()
        assert [word for word in words if not re.search(rf"[\"=]{word}\b", code)] == []

    def test_is_complete_in_every_page(self) -> None:
        marks = [
            name for text in TEXTS.values() for name in re.findall("<!-- generated: (.+) -->", text)
        ]
        assert sorted(marks) == sorted(generated.NAMES)


class TestTheOperatorsPage:
    def test_says_of_each_log_message_what_to_do(self) -> None:
        rows = [line.split(" | ") for line in TEXTS["docs/operating.md"].splitlines()]
        told = {cells[0].strip("| `") for cells in rows if len(cells) == 2}
        assert {generated.markdown(text) for _, text in generated.log_calls()} - told == set()


class TestTheStoresPage:
    def test_says_of_each_kind_what_it_promises(self) -> None:
        words = {True: "yes", False: "no", "process": "one process", "network": "all machines"}
        words["machine"] = "the workers of a machine"
        expected = []
        for kind in KINDS.values():
            one_render = "yes" if kind.one_render else "best effort"
            cells = (words[kind.shared], words[kind.exact], one_render, words[kind.lists])
            expected.append([*cells, words[kind.wants], words[kind.durable]])
        rows = [line.strip("| ").split(" | ") for line in TEXTS["docs/stores.md"].splitlines()]
        found = [cells[1:] for cells in rows if len(cells) == 7 and cells[0] != "`cache`"]
        assert found == expected


class TestWhatIsNamed:
    def test_config_keys_exist(self) -> None:
        arguments = {*inspect.signature(ISRMiddleware).parameters, "secret", "url_prefix"}
        beyond = {name.lower() for name in generated.FACTS["django_only"]}
        for name, text in TEXTS.items():
            for key in re.findall(r"\b(?:FLASK_)?ISR_([A-Z_]+[A-Z])\b", text):
                assert key.lower() in arguments, (name, key)
            for key in re.findall(r"\bISR\[['\"](\w+)['\"]\]", text):
                assert key.isupper() and key.lower() in arguments | beyond, (name, key)

    def test_urls_of_stores_name_a_store(self) -> None:
        for package in ("redis", "valkey", "pymemcache"):
            pytest.importorskip(package)
        found = set()
        for name, text in TEXTS.items():
            # What stands alone in backticks or quotes, and names a whole store.
            for url in re.findall(
                r"[`\"]((?:memory|file|redis|rediss|valkey|valkeys|memcached)(?:\+\w+)?://[^`\"\s…]*)",
                text,
            ):
                scheme, _, rest = url.partition("://")
                found.add(scheme)
                if rest or scheme == "memory":
                    assert plan(url, "", "")[0] is not None, (name, url)
        schemes = {"memory", "file", "redis", "rediss", "valkey", "valkeys", "memcached"}
        assert found >= schemes | {"redis+cluster", "redis+sentinel"}
        for scheme in ("valkey+cluster", "rediss+cluster"):
            assert plan(f"{scheme}://a,b", "", "")[0] is not None
        assert plan("valkey+sentinel://a/service", "", "")[0] is not None

    def test_commands_and_their_options_exist(self) -> None:
        seen = set()
        for name, text in TEXTS.items():
            for command, rest in re.findall(
                r"(?:flask isr|manage\.py isr|MODULE:APP|[\w.]+:app) ([a-z]+)\b([^`\n|]*)", text
            ):
                seen.add(command)
                assert command in group.commands, (name, command)
                there = {o for p in group.commands[command].params for o in p.opts}
                assert set(re.findall(r"--[\w-]+", rest)) <= there, (name, command, rest)
        assert seen >= {"explain", "list", "prerender", "prune", "regenerate", "revalidate"}

    def test_signals_exist(self) -> None:
        named = set()
        for text in TEXTS.values():
            named |= set(re.findall(r"signals?\s+`(\w+)`", text))
            for names in re.findall(r"from wsgi_isr\.signals import (.+)", text):
                named |= set(names.split(", "))
        assert named >= {"store_failed", "invalidated", "page_withdrawn"}
        assert not [name for name in named if not hasattr(signals, name)]

    def test_methods_exist(self) -> None:
        methods = {*dir(ISRMiddleware), *dir(ISR)}
        for name, text in TEXTS.items():
            for method in re.findall(r"\bisr\.(?:middleware\.)?(\w+)\(", text):
                assert method in methods, (name, method)

    def test_links_lead_somewhere(self) -> None:
        for name, text in TEXTS.items():
            # What is included is read where it is included.
            for link in re.findall(r"\]\(([^)#\s]+)", text):
                if "://" not in link:
                    assert ((ROOT / name).parent / link).exists(), (name, link)


@pytest.mark.parametrize("name", TEXTS)
def test_a_page_is_short(name: str) -> None:
    assert TEXTS[name].count("\n") <= (200 if name == "README.md" else 250)


@pytest.mark.parametrize("name", sorted(p.name for p in DIAGRAMS.iterdir()))
def test_a_diagram_has_a_title_and_stands_in_a_page(name: str) -> None:
    title = ElementTree.parse(DIAGRAMS / name).find("{http://www.w3.org/2000/svg}title")
    assert title is not None and title.text
    assert f"diagrams/{name})" in "".join(TEXTS.values())


class TestProse:
    def test_finds_phrases_in_texts_and_programs_and_nothing_in_code(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "src").mkdir()
        (tmp_path / "src" / "a.py").write_text("his = 1  # his name\n", "utf-8")
        (tmp_path / "A.md").write_text(
            "Simply.\n\n```python\nhis = 1\n```\n\n`his` and/or\n", "utf-8"
        )
        main = runpy.run_path(str(ROOT / ".ci" / "prose.py"))["main"]
        assert main(str(tmp_path)) == 1
        lines = capsys.readouterr().out.splitlines()
        places = [line.removeprefix(f"{tmp_path}/").partition(": ")[0] for line in lines[:-1]]
        assert (places, lines[-1]) == (["A.md:1", "A.md:7", "src/a.py:1"], "2 files, 3 phrases")

    def test_counts_the_words_of_long_sentences(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "A.md").write_text("word " * 41 + ".\n", "utf-8")
        main = runpy.run_path(str(ROOT / ".ci" / "prose.py"))["main"]
        assert main(str(tmp_path)) == 0
        assert "a hint: 42 words" in capsys.readouterr().out
