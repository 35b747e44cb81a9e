import pytest

from tools.includes import ROOT, for_site, on_page_markdown


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("![a](docs/a.svg)", "![a](a.svg)"),
        (
            "[idea](docs/idea.md) and [site](https://example.org/docs/x)",
            "[idea](idea.md) and [site](https://example.org/docs/x)",
        ),
        ("[how](CONTRIBUTING.md), [top](#top)", "[how](contributing.md), [top](#top)"),
        ("licence: [Apache-2.0](LICENSE)", "licence: Apache-2.0"),
    ],
)
def test_links_lead_where_they_lead_on_the_site(before: str, after: str) -> None:
    assert for_site(before) == after


def test_a_page_shows_a_file_of_the_root() -> None:
    shown = on_page_markdown("{{ CONTRIBUTING.md }}\n", page=None)
    assert shown == for_site((ROOT / "CONTRIBUTING.md").read_text()) + "\n"
    assert on_page_markdown("text with {{ CONTRIBUTING.md }} inside") == "text with {{ CONTRIBUTING.md }} inside"
