"""Finds phrases that we do not write, in documentation, docstrings, comments and messages.

What a machine can see of plain English. Sentences of more than forty words are shown as a hint.

python .ci/prose.py [ROOT]
"""

from __future__ import annotations

import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

#: Patterns, and what to write instead.
BANNED = {
    r"he|him|his|himself|she|her|whoever": "they",
    r"behind (?:the|a|its) visitors?": "after the answer",
    r"tells? of": "says, names",
    r"where its time is over": "when it has expired",
    r"in one's own way|of one's own": "say who",
    r"site-as-config|survey": "say what it is",
    r"as of yet|in order to": "yet, to",
    r"utilize[sd]?|leverag(?:e|es|ed|ing)": "use",
    r"is able to|are able to": "can",
    r"simply|obviously|of course|basically|just works": "leave it out",
    r"please note|it should be noted": "leave it out",
    r"and/or": "or",
    r"whilst|thereof|therein|hereby|heretofore|aforementioned": "while, of it",
    r"blazing(?:ly)?|seamless(?:ly)?|robust(?:ly)?|effortless(?:ly)?|powerful": "say what it does",
    r"the former|the latter": "name it",
}
_BANNED = [
    (re.compile(rf"\b(?:{pattern})\b", re.IGNORECASE), say) for pattern, say in BANNED.items()
]
TEXTS = ("*.md", "*.rst", "docs/**/*.md", "examples/**/*.md")
SOURCES = ("src/**/*.py", "docs/*.py", ".ci/*.py")
MOST_WORDS = 40


def prose_of(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of prose: all but code, of a text; comments and literals of a program."""
    text = path.read_text("utf-8")
    if path.suffix != ".py":
        # Code and links are not prose; they keep their lines.
        for pattern in (r"^```.*?^```$", r"<!--.*?-->", r"`[^`\n]*`|\]\([^)]*\)"):
            blank = re.compile(pattern, re.DOTALL | re.MULTILINE)
            text = blank.sub(lambda found: "\n" * found[0].count("\n") or "X", text)
        yield from enumerate(text.splitlines(), 1)
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING):
            yield from enumerate(token.string.splitlines(), token.start[0])


def long_sentences(path: Path) -> Iterator[str]:
    if path.suffix != ".py":
        paragraphs = "\n".join(line for _, line in prose_of(path)).split("\n\n")
        for paragraph in paragraphs:
            if not paragraph.lstrip().startswith(("|", "-", "#")):
                for sentence in re.split(r"(?<=[.:;?!])\s", " ".join(paragraph.split())):
                    if len(sentence.split()) > MOST_WORDS:
                        yield sentence


def main(root: str = ".") -> int:
    found = 0
    own = Path(__file__).name
    paths = sorted({path for pattern in (*TEXTS, *SOURCES) for path in Path(root).glob(pattern)})
    for path in paths:
        if path.name == own:
            continue
        for number, line in prose_of(path):
            for pattern, say in _BANNED:
                if match := pattern.search(line):
                    found += 1
                    print(f"{path}:{number}: {match[0]!r}: {say}")
        for sentence in long_sentences(path):
            print(f"{path}: a hint: {len(sentence.split())} words: {sentence[:70]} ...")
    print(f"{len(paths)} files, {found} phrases")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
