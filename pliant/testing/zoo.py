"""The zoo: small networks on which every law is run. Between them they tie axes in every way the graph must know.

Every file `zoo_*` with a list `ENTRIES` is one part of it; a new file is named in `_PARTS`.
"""

import importlib.util

from pliant.testing import zoo_hf, zoo_hf_more, zoo_plain, zoo_science, zoo_sequence, zoo_transformers, zoo_vision
from pliant.testing.entry import Entry

_PARTS = (zoo_plain, zoo_vision, zoo_transformers, zoo_sequence, zoo_science, zoo_hf, zoo_hf_more)


def _joined() -> dict[str, Entry]:
    """All entries by name; those of Hugging Face only where transformers is installed.

    Raises:
        ValueError: two entries have one name.
    """
    found: dict[str, Entry] = {}
    there = importlib.util.find_spec("transformers") is not None
    for each in (each for part in _PARTS for each in part.ENTRIES):
        if each.name in found:
            raise ValueError(f"the zoo has two networks called {each.name!r}; names are unique")
        if there or each.family is None:
            found[each.name] = each
    return found


ZOO: dict[str, Entry] = _joined()
"""Name -> entry; those of a Hugging Face family are there where transformers is installed."""
