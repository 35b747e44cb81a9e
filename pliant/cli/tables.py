"""What commands show to people: rich tables on stdout."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from pliant.core import Space
    from pliant.search import Front


def say(*things: Any) -> None:
    """Prints text or rich renderables; no markup is read, so that brackets in names stay what they are."""
    Console(highlight=False, markup=False).print(*things, soft_wrap=all(isinstance(thing, str) for thing in things))


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, title: str | None = None, texts: int = 1) -> Table:
    """A plain table; all columns but the first `texts` are set flush right."""
    drawn = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(head):
        drawn.add_column(name, justify="left" if index < texts else "right", overflow="fold")
    for row in rows:
        drawn.add_row(*row)
    return drawn


def value_text(key: str, value: float) -> str:
    """A value as people write it: accuracy in percent, counts with a suffix."""
    from pliant.report.chart import number, percent

    return percent(value) if key == "accuracy" else number(value)


def front_table(front: "Front", space: "Space") -> Table:
    """One line per point: what it keeps and every value measured."""
    from pliant.report.contents import letters, quantity, summarise

    keys = [axis.key for axis in front.objectives]
    extra = [key for key in ("flops", "parameters") if key not in keys and all(key in p.values for p in front)]
    rows = []
    for index, point in enumerate(front):
        cells = [value_text(key, point.values[key]) for key in [*keys, *extra]]
        rows.append([letters(index), summarise(point.config, space), *cells])
    return table(["", "keeps", *(quantity(key).label for key in [*keys, *extra])], rows, texts=2)
