import pytest

from tools.readme import Block, Claim, blocks, claims, disagreement

TEXT = """# Title

```python
x = 1

y = 2
```

```
make demo
```

| what | pliant | baseline | row: figure |
|---|---:|---:|---|
| accuracy at half the width | 91.2 % | 90.1 % | `fashion: accuracy_half` |
| no figure | 3 | 4 | text |
"""


def test_blocks_by_language_with_their_lines() -> None:
    assert blocks(TEXT, "python") == [Block(4, "x = 1\n\ny = 2\n")]
    assert blocks(TEXT, "") == [Block(10, "make demo\n")]
    assert blocks(TEXT, "bash") == []


def test_claims_are_lines_with_a_source() -> None:
    assert list(claims(TEXT)) == [Claim(15, "91.2 %", "90.1 %", "fashion", "accuracy_half")]


@pytest.mark.parametrize(
    ("pliant", "baseline", "said"),
    [
        ("91.2 %", "90 %", None),
        ("0.912", "-", None),
        ("**0.9123**", "", None),
        ("91.3 %", "90 %", "'91.3 %' but fashion has figures.a = 0.91234"),
        ("91.2 %", "91 %", "'91 %' but fashion has baseline.a = 0.9"),
        ("better", "90 %", "'better' should hold one number"),
        ("1 of 2", "90 %", "'1 of 2' should hold one number"),
    ],
)
def test_figures_are_compared_as_they_are_shown(pliant: str, baseline: str, said: str | None) -> None:
    claim = Claim(1, pliant, baseline, "fashion", "a")
    assert disagreement(claim, {"figures": {"a": 0.91234}, "baseline": {"a": 0.9}}) == said


def test_large_numbers_and_missing_figures() -> None:
    assert disagreement(Claim(1, "1,234 ms", "-", "r", "a"), {"figures": {"a": 1234.4}}) is None
    assert disagreement(Claim(1, "12", "-", "r", "b"), {"figures": {"a": 12}}) == "r has no figures.b"
    assert disagreement(Claim(1, "12", "13", "r", "a"), {"figures": {"a": 12}}) == "r has no baseline.a"
