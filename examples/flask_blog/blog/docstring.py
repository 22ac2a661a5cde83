"""The plain text of docstrings, turned into reStructuredText."""

from __future__ import annotations

import re
import textwrap
import typing as t

from .rest import complaints, is_table

_BULLET = re.compile(r" *(?:[-*+•]|\d+[.)]) +\S")
_HEADING = re.compile(r"(?:([=~^*#-])\1+\n)?(\S.*)\n([=~^*#-])\3{2,} *$")
_TABLE_RULE = re.compile(r"^ *\+?[=-]{2,}[ +=-]*$", re.MULTILINE)
#: A row of a drawing, from edge to edge. A table is drawn like that, too.
_DRAWING = re.compile(r"^ *[|+].*[|+] *$", re.MULTILINE)
#: Prose has no columns, no indented lines, no arrows.
_LAYOUT = re.compile(r"[^.?!:\s]\s{3,}\S|\n |--+[>|]|\S +-- .*\n.*\S +-- ")
#: Lines of code or of a shell.
_CODE = re.compile(
    r"^(?:import \w|from \S+ import |@\w|[$%] |[\w.\[\], ]+ = |\w+\([^)]*\) *#)",
    re.MULTILINE,
)
_MARKUP = re.compile(r"[*`|\\]|_\b|_\W|^[.:>+=-]")


def to_rest(text: str) -> str:
    """Turn a docstring into reStructuredText without errors.

    Most docstrings nearly are. Columns, drawings and the like, which are no paragraph, list
    or heading, become literal blocks.
    """
    parts: list[str] = []
    in_literal = False
    for block in _blocks(text):
        continues = bool(parts) and parts[-1].endswith("::") and block.startswith(" ")
        literal = continues or _is_literal(block)
        if literal:
            if not (in_literal or continues):
                _announce_literal(parts)
            block = textwrap.indent(textwrap.dedent(block), "    ")
        else:
            if parts and not in_literal:
                parts[-1] = re.sub("::$", ":", parts[-1])
            block = _convert(block)
        parts.append(block)
        in_literal = literal
    if parts and not in_literal:
        parts[-1] = re.sub("::$", ":", parts[-1])
    rest = "\n\n".join(parts)
    return "::\n\n" + textwrap.indent(text, "    ") if complaints(rest) else rest


def to_line(text: str) -> str:
    """Turn the first paragraph of a docstring into one line of reStructuredText."""
    line = " ".join(text.strip().partition("\n\n")[0].split())
    line = re.sub("::$", ":", textwrap.shorten(line, 400, placeholder=" …"))
    return escape(line) if _MARKUP.search(line) and complaints(line) else line


def escape(text: str) -> str:
    """Escape markup, except ````code````."""
    pieces = re.split(r"(``[^`\n]+``)", text)
    pieces[::2] = [re.sub(r"[\\*`|]|_(?!\w)", r"\\\g<0>", piece) for piece in pieces[::2]]
    return "".join(pieces)


def _blocks(text: str) -> t.Iterator[str]:
    """Split a text where it has empty lines, but keep lists and code together."""
    block = ""
    for piece in re.split(r"\n(?:[ \t]*\n)+", text.strip("\n")):
        indented = piece.startswith(" ")
        if block and (
            (indented and (block.startswith(" ") or _BULLET.match(block)))
            or (_BULLET.match(piece) and _BULLET.match(block) and not indented)
        ):
            block += f"\n\n{piece}"
            continue
        if block:
            yield block
        block = piece
    if block:
        yield block


def _is_literal(block: str) -> bool:
    indented, block = block.startswith(" "), textwrap.dedent(block)
    if block.startswith(">>> ") or _HEADING.match(block):
        return False
    if _DRAWING.search(block) and not is_table(block):
        return True
    if _TABLE_RULE.search(block):
        return bool(complaints(block))
    if _BULLET.match(block):
        return "\n" in block and bool(complaints(_list(block)))
    return bool(indented or _CODE.search(block) or _LAYOUT.search(block))


def _convert(block: str) -> str:
    block = textwrap.dedent(block).rstrip()
    if heading := _HEADING.match(block):
        return f"{heading[2]}\n{'-' * len(heading[2])}"
    if block.startswith(">>> ") or _TABLE_RULE.search(block):
        return block
    if _BULLET.match(block):
        return _list(block)
    if _MARKUP.search(block) and complaints(re.sub("::$", ":", block)):
        return escape(block)
    return block


def _list(block: str) -> str:
    """Indent the lines of a list as reStructuredText wants it."""
    lines: list[str] = []
    items = [(-1, 0)]  # the items we are in: where the bullet was, where the text goes
    for line in textwrap.dedent(block).splitlines():
        bullet = _BULLET.match(line)
        if bullet and "::" not in block:
            indent, mark = len(line) - len(line.lstrip()), line.split()[0]
            depth = len(items)
            while items[-1][0] >= indent:
                items.pop()
            if len(items) != depth - 1:
                lines.append("")
            line = line.strip().removeprefix(mark).lstrip()
            line = f"{' ' * items[-1][1]}{mark.replace('•', '-')} {line}"
            items.append((indent, items[-1][1] + len(mark) + 1))
        elif line.strip() and "::" not in block:
            line = " " * items[-1][1] + line.strip()
        lines.append(line)
    block = "\n".join(lines).strip("\n")
    if not complaints(block):
        return block
    return re.sub(r"^( *)\\\*(?= )", r"\1*", escape(block), flags=re.MULTILINE)


def _announce_literal(parts: list[str]) -> None:
    """Say that a literal block follows, with the colon of the last line if it has one."""
    if parts and re.search(r"[^:\s]:$", parts[-1]):
        parts[-1] += ":"
    else:
        parts.append("::")
