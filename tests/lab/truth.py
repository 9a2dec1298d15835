# SPDX-License-Identifier: GPL-2.0-or-later
"""The tables of docs/truth.md, as the suites that hold them read them.

    for row in rows("cpg"):
        row.here, row.elsewhere, row.answers["status"]     # "off", "unknown", "fail"

Must never change or complete what the page says.
"""

import dataclasses

from lab import programs

PAGE = programs.REPOSITORY / "docs" / "truth.md"
ACTIONS = ("status", "off", "on", "reboot")
#: Exit codes of the agents for each answer of the page.
CODES = {"on": 0, "done": 0, "off": 2, "fail": 1}


@dataclasses.dataclass(frozen=True)
class Row:
    """A row: a world, and the answer to each action in it."""

    topology: str
    here: str
    elsewhere: str
    answers: dict = dataclasses.field(hash=False)

    def __str__(self):
        return f"{self.here}-{self.elsewhere}"


def rows(topology):
    """The rows of that topology, in the page's order."""
    found = []
    for line in PAGE.read_text().splitlines():
        cells = [it.strip() for it in line.strip().strip("|").split("|")]
        if len(cells) == 3 + len(ACTIONS) and cells[0] == topology:
            found.append(Row(*cells[:3], dict(zip(ACTIONS, cells[3:], strict=True))))
    assert found, f"{PAGE} has no rows of {topology}"
    return found
