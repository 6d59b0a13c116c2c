"""The writer of tables in Markdown, and how shares stand in their cells."""

from collections.abc import Iterable, Sequence

from latent_core.analysis.statistics import Interval


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, dashes: str = "---") -> str:
    """A table in Markdown, a line per row, with a newline at its end. A bar within a cell becomes ¦.

    dashes: what stands below each name of the header.
    """
    lines = [_line(header), f"|{'|'.join([dashes] * len(header))}|"]
    for row in rows:
        assert len(row) == len(header), f"{row} has no cell for each of {header}"
        lines.append(_line(row))
    return "\n".join(lines) + "\n"


def percent(share: Interval | float | None) -> str:
    """A share as a cell in percent: `71.4`, with its bounds `71.4 [67.3, 75.2]`, nothing for None."""
    if share is None:
        return ""
    if isinstance(share, Interval):
        return f"{percent(share.value)} [{percent(share.low)}, {percent(share.high)}]"
    # 1543 of 2000 are 77.15%, but 100 times the float 0.7715 is a little less and would be rounded down
    return f"{round(100 * share, 9):.1f}"


def points(difference: Interval) -> str:
    """A difference of shares as a cell in percentage points, with signs: `-0.5 [-3.1, +2.0]`."""
    value, low, high = (f"{100 * edge:+.1f}" for edge in (difference.value, difference.low, difference.high))
    return f"{value} [{low}, {high}]"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '¦') for cell in cells)} |"
