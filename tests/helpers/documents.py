"""README.md and docs/*.md, and what stands in them: blocks and tables behind a mark, command lines, links."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = {
    page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8")
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
README = PAGES["README.md"]


def block(page: str, mark: str) -> str:
    """The fenced block that follows an HTML comment."""
    match = re.search(rf"<!-- {re.escape(mark)} -->\n```\w*\n(.*?)\n```", PAGES[page], re.DOTALL)
    assert match, f"{page} has no block after <!-- {mark} -->"
    return match[1]


def table(page: str, mark: str) -> list[list[str]]:
    """The cells of the table that follows an HTML comment, row by row, without its head."""
    match = re.search(rf"<!-- {re.escape(mark)} -->\n(\|.*?)\n\n", PAGES[page], re.DOTALL)
    assert match, f"{page} has no table after <!-- {mark} -->"
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in match[1].splitlines()[2:]]


def prose(page: str) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)


def quoted(page: str) -> list[str]:
    """What stands in `backticks` in a page's prose, in one line each."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(page))]


def shell_lines(page: str) -> list[list[str]]:
    """The words of every command in a page's sh blocks; what `&&` joins is more than one, comments are left out."""
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE)
    commands = [part for text in blocks for line in text.splitlines() for part in line.split(" && ")]
    return [shlex.split(command, comments=True) for command in commands if command.strip()]


def minipovid_lines(page: str) -> list[list[str]]:
    """Those commands of `shell_lines` that are minipovid's, from that word on."""
    lines = shell_lines(page)
    return [
        words[words.index("minipovid") :]
        for words in lines
        if words[0] == "minipovid" or ["-m", "minipovid"] in [words[i : i + 2] for i in range(len(words))]
    ]


def anchors(page: str) -> set[str]:
    """The names under which GitHub links to a page's headings."""
    heads = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def links(page: str) -> list[str]:
    """The targets of a page's links and pictures."""
    return re.findall(r"\]\(([^)\s]+)\)", prose(page))
