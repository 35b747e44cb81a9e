"""Reading our own Markdown: code blocks that tests run, and figures that tests compare with results."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
SOURCE = re.compile(r"`(?P<row>[\w.-]+): (?P<figure>[\w.-]+)`")
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True)
class Block:
    """A fenced code block: the line its code begins on, and the code."""

    line: int
    code: str


def blocks(text: str, language: str) -> list[Block]:
    """Every fenced block of one language, in order."""
    found = (match for match in FENCE.finditer(text) if match["language"] == language)
    return [Block(text.count("\n", 0, match.start("code")) + 1, match["code"]) for match in found]


@dataclass(frozen=True)
class Claim:
    """One line of a table of figures: what it says, and where it says it has that from."""

    line: int
    pliant: str
    baseline: str
    row: str
    figure: str


def claims(text: str) -> Iterator[Claim]:
    """Lines of a table whose last cell reads `ROW: FIGURE`, with our cell and the baseline's before it."""
    for number, line in enumerate(text.splitlines(), 1):
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("|") and len(cells) >= 3 and (source := SOURCE.fullmatch(cells[-1])):
            yield Claim(number, cells[-3], cells[-2], source["row"], source["figure"])


def disagreement(claim: Claim, result: Mapping[str, Any]) -> str | None:
    """Why a claim is not what the result file holds, rounded to the digits shown; None where it is."""
    for column, shown in (("figures", claim.pliant), ("baseline", claim.baseline)):
        measured = (result.get(column) or {}).get(claim.figure)
        if shown in ("", "-"):
            continue
        if not isinstance(measured, int | float):
            return f"{claim.row} has no {column}.{claim.figure}"
        numbers = NUMBER.findall(shown)
        if len(numbers) != 1:
            return f"{shown!r} should hold one number"
        scale = 100 if "%" in shown else 1
        digits = len(numbers[0].partition(".")[2])
        if f"{measured * scale:.{digits}f}" != numbers[0].replace(",", ""):
            return f"{shown!r} but {claim.row} has {column}.{claim.figure} = {measured}"
    return None
