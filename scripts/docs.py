# SPDX-License-Identifier: GPL-2.0-or-later
"""The pages of the repository: their shelves, their links, their headings. For scripts/book and scripts/check-docs."""

import pathlib
import re
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent
INDEX = ROOT / "docs/README.md"
SHELVES = ["Start", "Operate", "Several hosts", "Security", "Internals"]


def pages():
    """All Markdown files, also those that git does not have yet."""
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.md"], cwd=ROOT,
                            capture_output=True, text=True, check=True).stdout
    return sorted(it for it in (ROOT / name for name in listed.split("\0") if name) if it.exists())


def shelves():
    """What docs/README.md has on each shelf: title of the shelf to (title, path, rest of the line)."""
    found, shelf = {}, None
    for line in INDEX.read_text().splitlines():
        if line.startswith("## "):
            shelf = found.setdefault(line[3:].strip(), [])
        elif entry := re.fullmatch(r"- \[(.+?)\]\((\S+?)\)(.*)", line):
            shelf.append((entry[1], (INDEX.parent / entry[2]).resolve(), entry[3]))
    return found


def prose(page):
    """The text outside of code, line for line: what is code is left empty."""
    fence, kept = None, []
    for line in page.read_text().splitlines():
        mark = re.match(r" {0,3}(```+|~~~+)", line)
        is_code = fence or mark or line.startswith(("    ", "\t"))
        if mark:
            fence = mark[1] if not fence else None if mark[1].startswith(fence) else fence
        kept.append("" if is_code else re.sub(r"(`+)(.+?)\1", lambda it: "`" * len(it[0]), line))
    return "\n".join(kept)


LINK = re.compile(r"\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^()\s]*)\)")


def links(page):
    """Every link and picture: line, text, where to."""
    text = prose(page)
    for found in LINK.finditer(text):
        yield text.count("\n", 0, found.start()) + 1, found[1], found[2]


def anchors(page):
    """What a forge and mdbook call its headings."""
    found, seen, fence = set(), [], False
    for line in page.read_text().splitlines():
        fence ^= line.startswith("```")
        if not fence and (heading := re.fullmatch(r"#{1,6}\s+(.+?)\s*#*", line)):
            text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1])
            name = "".join(it for it in text.lower() if it.isalnum() or it in "_- ").replace(" ", "-")
            count = sum(it == name for it in seen)
            seen.append(name)
            found.add(f"{name}-{count}" if count else name)
    return found
