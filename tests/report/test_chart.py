import math
import xml.etree.ElementTree as ET

import pytest

from pliant.report.chart import Axis, Chart, Mark, Scale, Series, number, percent

NS = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (7, "7"), (1234, "1234"), (12345, "12.3k"), (1234567, "1.23M"), (2.5e9, "2.5G"), (0.012345, "0.0123")],
)
def test_number_keeps_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_percent_has_one_decimal() -> None:
    assert percent(0.9731) == "97.3 %"


def test_linear_scale_maps_the_ends_and_ticks_lie_inside() -> None:
    scale = Scale(0.0, 10.0, 100.0, 200.0)
    assert (scale(0.0), scale(5.0), scale(10.0)) == (100.0, 150.0, 200.0)
    assert scale.ticks() == [0, 2, 4, 6, 8, 10]


def test_log_scale_puts_equal_ratios_at_equal_distances() -> None:
    scale = Scale(0.1, 1000.0, 0.0, 400.0, log=True)
    assert scale(1.0) - scale(0.1) == pytest.approx(scale(100.0) - scale(10.0))
    assert scale.ticks()[0] == pytest.approx(0.1)
    assert all(0.1 <= tick <= 1000 for tick in scale.ticks())


def test_scale_around_one_value_has_a_width() -> None:
    for log in (False, True):
        scale = Scale.around([3.0], 0.0, 1.0, log)
        assert scale.low < 3.0 < scale.high
    assert Scale.around([0.0, 1.0], 0.0, 1.0, True).log is False  # a logarithm of zero is no place


def _chart(*marks: Mark, line: str = "none") -> Chart:
    return Chart("t", Axis("x"), Axis("y"), [Series("one", marks, line=line), Series("two", marks[:1], tone=2)])


def test_svg_is_well_formed_and_tells_every_mark() -> None:
    text = _chart(Mark(0, 0, "A & <B>"), Mark(1, 2, "second", strong=True), line="step").svg(style="svg{}")
    root = ET.fromstring(text)
    circles = root.findall(f"{NS}circle")
    titles = [t.text for c in circles if (t := c.find(f"{NS}title")) is not None]
    assert titles == ["A & <B>", "second", "A & <B>"]
    assert root.findtext(f"{NS}style") == "svg{}"
    (path,) = root.findall(f"{NS}path")
    assert "H" in path.attrib["d"]
    assert "V" in path.attrib["d"]


def test_higher_values_are_drawn_higher() -> None:
    root = ET.fromstring(_chart(Mark(0, 0, "low"), Mark(1, 2, "high")).svg())
    low, high = root.findall(f"{NS}circle")[:2]
    assert float(high.attrib["cy"]) < float(low.attrib["cy"])
    assert float(high.attrib["cx"]) > float(low.attrib["cx"])


def test_nothing_and_nan_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one mark"):
        Chart("t", Axis("x"), Axis("y"), []).svg()
    with pytest.raises(ValueError, match="finite"):
        _chart(Mark(0, math.nan, "x")).svg()
