# SPDX-License-Identifier: GPL-2.0-or-later
"""Names and files in the tables of docs/limits.md are those of the source.

After a constant was renamed or moved, correct the page alone: its row has the constant and, beside it, the
file that defines the constant. The file `fence_virt.conf` stands for a key of the configuration.
"""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "docs/limits.md"
CONFIGURATION = "fence_virt.conf"
#: Begin of the head of a table that has no limits; tests/islands/table.py prints it.
OF_LOADS = ["load", "who"]


def rows():
    """Line number, constants and file of each row of the tables."""
    found, head = [], None
    for number, line in enumerate(PAGE.read_text().splitlines(), 1):
        if not line.startswith("|"):
            head = None
        elif head is None:
            head = cells(line)
            assert head[:2] == OF_LOADS or head[-2:] == ["constant", "file"], f"docs/limits.md:{number}: the last columns"
        elif not line.startswith("| ---") and head[:2] != OF_LOADS:
            row = cells(line)
            assert len(row) == len(head), f"docs/limits.md:{number}: {len(row)} cells under {len(head)} heads"
            found.append((number, re.findall(r"`([^`]+)`", row[-2]), row[-1].strip("`")))
    return found


def cells(line):
    return [cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|")]


def defines(source, constant):
    """Returns whether a file defines `NAME`, or `NAME` of `Type` for `Type::NAME`."""
    *types, name = constant.split("::")
    return all(re.search(rf"\bimpl\b.*\b{it}\b", source) for it in types) \
        and re.search(rf"(?m)^\s*(?:pub(?:\([^)]*\))?\s+)?(?:const|static)\s+{name}\s*:", source) is not None


@pytest.mark.parametrize("number, constants, file", rows())
def test_row(number, constants, file):
    place = f"docs/limits.md:{number}"
    if file == CONFIGURATION:
        keys = re.findall(r"(?m)^\| `(\w+)`", (REPOSITORY / "docs/fence_virt.conf.md").read_text())
        assert constants and set(constants) <= set(keys), f"{place}: {constants} in docs/fence_virt.conf.md"
        return
    assert file or not constants, f"{place}: name the file that defines {constants}"
    if not file:
        return
    path = REPOSITORY / "crates" / file
    assert path.is_file(), f"{place}: crates/{file} is not there; correct the column \"file\""
    missing = [it for it in constants if not defines(path.read_text(), it)]
    assert not missing, f"{place}: crates/{file} does not define {missing}; correct the row"


@pytest.mark.parametrize("file", sorted({file for *_, file in rows() if file.endswith("/limits.rs")}))
def test_file_of_limits(file):
    """Each constant of a file that has only limits has a row in the page."""
    named = {it for _, constants, other in rows() if other == file for it in constants}
    source = (REPOSITORY / "crates" / file).read_text()
    defined = set(re.findall(r"(?m)^(?:pub(?:\([^)]*\))?\s+)?const\s+(\w+)\s*:", source))
    assert defined <= named, f"docs/limits.md: add {defined - named}"
