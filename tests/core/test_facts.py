from dataclasses import FrozenInstanceError

import pytest

from pliant.core import Facts


def test_facts_are_frozen_and_hashable() -> None:
    facts = Facts(title="Slimmable Neural Networks", year=2019, room="elastic", laws=("deterministic",))
    assert {facts} == {Facts(title="Slimmable Neural Networks", year=2019, room="elastic", laws=("deterministic",))}
    assert facts.rows == facts.needs == facts.deviations == ()
    with pytest.raises(FrozenInstanceError):
        facts.year = 2020  # type: ignore[misc]
