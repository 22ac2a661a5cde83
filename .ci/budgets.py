"""Counts the source and the tests. It prints how far they are from the aim, and fails on growth.

What may not grow any further is written below: a smaller number is written there as soon as it is
reached.

python .ci/budgets.py [ROOT]
"""

from __future__ import annotations

import ast
import re
import sys
import tokenize
from pathlib import Path

AIM_LINES = 6_500
AIM_FILES = 40

MAX_LINES = 12_700
MAX_FILES = 48
MAX_LINES_OF_A_FILE = 400
MAX_TESTS = 2.0  # times the lines of the source

# What is shipped beside the library does not count, nor do the tests of that.
APART = ("django", "status", "testing")
TESTS_APART = re.compile(
    r"browser|djangos|shelf|test_(django|flask_status|status|wagtail)|wagtails"
)
SUFFIXES = (".lua", ".py")

NO_CODE = {
    tokenize.COMMENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
    tokenize.INDENT,
    tokenize.NEWLINE,
    tokenize.NL,
}


def lines(path: Path) -> int:
    return len(path.read_text("utf-8").splitlines())


def code_lines(path: Path) -> int:
    """The lines with code on them: no comments, no docstrings, no empty lines."""
    if path.suffix != ".py":
        text = path.read_text("utf-8").splitlines()
        return sum(1 for line in text if line.strip() and not line.strip().startswith("--"))
    with tokenize.open(path) as file:
        code = {
            number
            for token in tokenize.generate_tokens(file.readline)
            if token.type not in NO_CODE
            for number in range(token.start[0], token.end[0] + 1)
        }
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            if isinstance(node.value.value, str):
                code -= {*range(node.lineno, (node.end_lineno or node.lineno) + 1)}
    return len(code)


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES)


def main(root: str = ".") -> int:
    package = Path(root) / "src" / "wsgi_isr"
    every = files_of(package)
    source = {p: lines(p) for p in every if p.relative_to(package).parts[0] not in APART}
    folder = Path(root) / "tests"
    names = {path: str(path.relative_to(folder)) for path in files_of(folder)}
    tests = sum(lines(path) for path, name in names.items() if not TESTS_APART.match(name))
    total = sum(source.values())
    longest = max(source, key=source.__getitem__)
    over = [
        f"{path.relative_to(root)}: {count} lines of at most {MAX_LINES_OF_A_FILE}"
        for path, count in source.items()
        if count > MAX_LINES_OF_A_FILE
    ]
    for what, count, bound in (
        ("lines of source", total, MAX_LINES),
        ("files of source", len(source), MAX_FILES),
        ("lines of tests", tests, int(MAX_TESTS * total)),
    ):
        print(f"{what}: {count:,} of at most {bound:,}")
        if count > bound:
            over.append(f"{what}: {count - bound:,} too many")
    print(f"the aim: {AIM_LINES:,} lines in {AIM_FILES} files")
    print(f"lines of code: {sum(map(code_lines, source)):,}")
    print(f"longest file: {longest.relative_to(package)}, {source[longest]} lines")
    print(f"apart: {sum(map(lines, every)) - total:,} lines, {len(every) - len(source)} files")
    print(*(f"over budget: {text}" for text in over), sep="\n", end="\n" if over else "")
    return bool(over)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
