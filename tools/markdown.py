"""Figures, cells, tables and settings as Markdown."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from pliant.core import PliantError

BEGIN = "<!-- Measured: written by `make catalogue` from bench/results; do not edit up to the next comment. -->\n"
END = "<!-- End of what was measured. -->\n"
NOT_YET = "not measured yet"

MOST_ROWS, MOST_COLUMNS = 12, 9
"""What a table of settings may have; larger ones stay in their file."""
_LONG = 300
"""Characters of a text that is still shown."""
_SHORT = 200
"""Characters of a list or map that is still shown in one line."""


def number(value: object) -> str:
    """A figure for people: whole numbers with separators, others with four significant digits."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else cell(str(value))
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.1f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"


def percent(value: float) -> str:
    """A share in percent, with three significant digits."""
    return f"{100 * value:.3g} %"


def replaced(page: str, part: str, where: str) -> str:
    """A page with its measured part written anew.

    Args:
        page: its text.
        part: what stands between the comments.
        where: the page's path.

    Raises:
        PliantError: the comments around the measured part are not there.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(END) < page.index(BEGIN):
        raise PliantError("the comments around what was measured are missing", where=where, fix=f"put back: {BEGIN}")
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + part + END + rest.partition(END)[2]


def cell(text: str) -> str:
    """Text that cannot leave its table cell."""
    return " ".join(text.replace("|", "\\|").split())


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, right: int = 0) -> str:
    """A Markdown table; the last `right` columns are aligned to the right."""
    rule = ["---"] * (len(head) - right) + ["---:"] * right
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows)) + "\n"


def plain(value: object) -> str:
    """A value in one line, however deep it goes."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value))
    return number(value)


def settings(values: Mapping[str, object], where: str) -> str:
    """How something was measured: a line for each value that fits one, a table for each that fits one.

    Args:
        values: by name; maps of maps are taken apart while they are small.
        where: the file that holds all of it; lines that say what was left out name it.
    """
    lines, tables, left = list[str](), list[str](), list[str]()
    for name, value in _parts("", values):
        if (text := _line(value)) is not None:
            lines.append(f"- {name}: {text}")
        elif (drawn := _table(value)) is not None:
            tables.append(f"{name}:\n\n{drawn}")
        else:
            left.append(name)
    if left:
        lines.append(f"- {', '.join(left)}: see `{where}`")
    return "\n".join(("\n".join(lines) + "\n", *tables)) if lines else "\n".join(tables)


def _parts(name: str, value: object) -> Iterator[tuple[str, object]]:
    """Names and values; of a small map that is neither a line nor a table those inside."""
    inside = isinstance(value, Mapping) and (not name or (_line(value) is None and _table(value) is None))
    if isinstance(value, Mapping) and inside and (not name or len(value) <= MOST_ROWS):
        for key, item in value.items():
            yield from _parts(f"{name}.{key}" if name else str(key), item)
    else:
        yield name, value


def _scalar(value: object) -> bool:
    return value is None or isinstance(value, str | int | float)


def _line(value: object) -> str | None:
    """A value that fits one line."""
    if _scalar(value):
        text = number(value)
        return text if len(text) <= _LONG else None
    items = list(value.values()) if isinstance(value, Mapping) else value
    if not isinstance(items, list | tuple) or not all(map(_scalar, items)):
        return None
    text = plain(value)
    return text if len(text) <= _SHORT else None


def _table(value: object) -> str | None:
    """A small table: maps with the same keys, or lists of the same length under names."""
    named = isinstance(value, Mapping)
    rows = dict(value) if isinstance(value, Mapping) else dict(enumerate(value)) if isinstance(value, list) else {}
    if not 0 < len(rows) <= MOST_ROWS:
        return None
    cells = [_row(row) for row in rows.values()]
    first = cells[0]
    if (
        first is None
        or not 0 < len(first) <= MOST_COLUMNS
        or any(row is None or row.keys() != first.keys() for row in cells)
    ):
        return None
    if not all(_scalar(item) and len(number(item)) <= _SHORT // 3 for row in cells if row for item in row.values()):
        return None
    head = [*([""] if named else []), *(f"`{key}`" for key in first)]
    lines = (
        [*([f"`{name}`"] if named else []), *(number(item) for item in row.values())]
        for name, row in zip(rows, cells, strict=True) if row is not None
    )  # fmt: skip
    return table(head, lines, right=len(first))


def _row(value: object) -> dict[str, object] | None:
    """The cells of a row by column; a list counts its columns."""
    if isinstance(value, Mapping):
        return {str(key): item for key, item in value.items()}
    return {str(place): item for place, item in enumerate(value, 1)} if isinstance(value, list | tuple) else None
