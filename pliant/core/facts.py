"""Facts: what a method declares about itself."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Facts:
    """Frozen facts of a method, declared beside it; the catalogue is generated from them.

    Args:
        rows: numbers of the rows of the literature table this method covers, such as ("010",); empty for our own.
        title: title of the paper, or of the idea where there is none.
        year: year of publication.
        room: the package it lives in, such as "elastic".
        needs: what must be given beyond a traced network ("data", "labels", ...).
        laws: names of the laws it promises (see `pliant.testing.laws`).
        deviations: how it differs from the paper, one sentence each.
    """

    title: str
    year: int
    room: str
    rows: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    laws: tuple[str, ...] = ()
    deviations: tuple[str, ...] = ()
