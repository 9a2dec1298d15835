# SPDX-License-Identifier: GPL-2.0-or-later
"""What was measured, and how it is shown: series of samples, their table and their JSON form.

    row = Row("whole client run, multicast", "status", "ms")
    row.add("ours", 0.0041)              # seconds, bytes or KiB as the unit says; None: it failed
    row.add("reference", 30, beyond=True)    # given up after 30 s
    print(table([row]))

A ratio is ours / reference, of medians: below 1 ours is faster or smaller. Nothing here judges a figure.
"""

import dataclasses
import math
import statistics

REFERENCE, OURS = "reference", "ours"

#: Units: factor from what is stored (seconds, bytes, KiB) to what is shown.
UNITS = {"ms": 1000.0, "s": 1.0, "KiB": 1.0, "MiB": 1 / 1024, "bytes": 1.0}


@dataclasses.dataclass
class Series:
    """Samples of one side. `failed`: what went wrong, a text each. `beyond`: how many of `values` are limits at which
    the measurement was given up."""

    values: list = dataclasses.field(default_factory=list)
    failed: list = dataclasses.field(default_factory=list)
    beyond: int = 0

    @property
    def median(self):
        """Median, or None without samples."""
        return statistics.median(self.values) if self.values else None

    @property
    def p95(self):
        """The smallest sample that at least 95 % of the samples don't exceed (with fewer than 20: the largest)."""
        return sorted(self.values)[math.ceil(0.95 * len(self.values)) - 1] if self.values else None


@dataclasses.dataclass
class Row:
    """One line of the table. `series`: by side ("reference", "ours") or by pair of agent and daemon."""

    section: str
    name: str
    unit: str = "ms"
    series: dict = dataclasses.field(default_factory=dict)

    def add(self, side, value, failed=None, beyond=False):
        """One sample of a side, or with `failed` a text that says why there is none."""
        series = self.series.setdefault(side, Series())
        if failed is not None:
            series.failed.append(failed)
        else:
            series.values.append(value)
            series.beyond += beyond

    def of(self, side):
        """The side's Series, empty when nothing was measured."""
        return self.series.get(side, Series())

    def ratio(self):
        """Text: ours / reference, with `<` where the reference was given up at a limit."""
        reference, ours = self.of(REFERENCE), self.of(OURS)
        if not reference.median or ours.median is None:
            return "-"
        return ("<" if _given_up(reference) else "") + _short(ours.median / reference.median)

    def json(self):
        """Everything, for json.dump."""
        return {"section": self.section, "name": self.name, "unit": self.unit, "ratio": self.ratio(),
                "series": {side: {**dataclasses.asdict(s), "median": s.median, "p95": s.p95}
                           for side, s in self.series.items()}}


def table(rows):
    """The rows as aligned text, a block for each section."""
    out = []
    for section in dict.fromkeys(row.section for row in rows):
        of_section = [row for row in rows if row.section == section]
        others = list(dict.fromkeys(s for row in of_section for s in row.series if s not in (REFERENCE, OURS)))
        head = [section, "", "reference", "p95", "ours", "p95", "ratio", *others, "n", ""]
        out += _aligned([head] + [_cells(row, others) for row in of_section]) + [""]
    return "\n".join(out)


def _cells(row, others):
    cells = [row.name, row.unit]
    for side in (REFERENCE, OURS):
        cells += [_shown(row, side, "median"), _shown(row, side, "p95")]
    cells += [row.ratio(), *(_shown(row, side, "median") for side in others)]
    counts = [len(row.of(side).values) for side in (REFERENCE, OURS) if side in row.series]
    cells.append(str(counts[0]) if len(set(counts)) == 1 else "/".join(map(str, counts)))
    failed = [f"{side}: {len(s.failed)} failed" for side, s in row.series.items() if s.failed]
    return [*cells, ", ".join(failed)]


def _shown(row, side, what):
    series = row.of(side)
    value = getattr(series, what)
    if value is None:
        return "-"
    if _given_up(series):
        return f">{value:g} s"
    return _short(value * UNITS[row.unit]) if row.unit != "bytes" else str(value)


def _given_up(series):
    return series.beyond > len(series.values) / 2


def _short(value):
    """Three digits that count."""
    if value >= 100:
        return f"{value:.0f}"
    if value >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 1 else f"{value:.3f}" if value >= 0.1 else f"{value:.2g}"


def _aligned(lines):
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return ["  ".join(cell.ljust(w) if i < 2 or i == len(line) - 1 else cell.rjust(w)
                      for i, (cell, w) in enumerate(zip(line, widths))).rstrip() for line in lines]
