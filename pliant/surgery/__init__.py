"""Surgery: networks cut, grown, mended and matched, on the traced graph; nothing that is given is ever changed."""

from pliant.surgery.grow import deepen as deepen
from pliant.surgery.grow import widen as widen
from pliant.surgery.match import match as match
from pliant.surgery.spans import insert as insert
from pliant.surgery.spans import repeat as repeat
from pliant.surgery.spans import replace as replace
from pliant.surgery.spans import skip as skip
from pliant.surgery.stitch import chain as chain
from pliant.surgery.stitch import cut as cut
from pliant.surgery.units import append as append
from pliant.surgery.units import duplicate as duplicate
from pliant.surgery.units import merge as merge
from pliant.surgery.units import permute as permute
from pliant.surgery.units import remove as remove
from pliant.surgery.units import split as split

__all__ = [
    "append", "chain", "cut", "deepen", "duplicate", "insert", "match", "merge", "permute", "remove", "repeat",
    "replace", "skip", "split", "widen",
]  # fmt: skip
