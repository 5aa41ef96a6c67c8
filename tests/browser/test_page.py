"""The report as a browser shows it: silent, self-contained, readable for everyone at every width."""

import itertools
from pathlib import Path

import pytest

pytestmark = pytest.mark.browser

NAMES = ("one", "seeds", "methods", "unscored", "hostile", "many", "internal")
WIDTHS = {"desktop": 1200, "tablet": 768, "phone": 390, "small phone": 320}
A4 = 794 - 2 * 53
"""Width of an A4 page between its margins, in CSS pixels."""

OVERFLOW = """() => {
  const wide = document.documentElement.clientWidth;
  const scrolls = (e) => getComputedStyle(e).overflowX !== "visible";
  const holds = (e) => e && e !== document.body && (scrolls(e) || holds(e.parentElement));
  return [...document.querySelectorAll("body *")]
    .filter((e) => e.getBoundingClientRect().right > wide + 1 && e.getBoundingClientRect().width > 0 && !holds(e))
    .map((e) => `${e.tagName} ${e.className.baseVal ?? e.className} ${e.textContent.trim().slice(0, 40)}`);
}"""
"""What sticks out of the page to the right, save what lies in a box that scrolls by itself."""
CROWDED = """() => [...document.querySelectorAll("th, td")].filter((cell) => {
  const words = document.createRange();
  words.selectNodeContents(cell);
  const [own, box] = [words.getBoundingClientRect(), cell.getBoundingClientRect()];
  return !cell.matches(".plot") && own.width > 0 && (own.left < box.left - 1 || own.right > box.right + 1);
}).map((cell) => cell.textContent.trim().slice(0, 60))"""
"""Cells whose words run into their neighbours."""
OVERLAPS = """() => [...document.querySelectorAll("figure > svg")].flatMap((svg) => {
  const texts = [...svg.querySelectorAll("text")].map((text) => [text.textContent, text.getBoundingClientRect()]);
  return texts.flatMap(([a, one], i) => texts.slice(i + 1)
    .filter(([, two]) => one.left < two.right - 1 && two.left < one.right - 1
      && one.top < two.bottom - 2 && two.top < one.bottom - 2)
    .map(([b]) => `${a} / ${b}`));
})"""
"""Words of figures that lie on each other."""
UNNAMED = """() => [...document.querySelectorAll("svg")].filter((svg) => {
  if (svg.closest("[aria-hidden=true]") || svg.parentElement.closest("svg")) return false;
  const named = (svg.getAttribute("aria-labelledby") || "").split(" ").filter(Boolean)
    .map((id) => document.getElementById(id)?.textContent || "").join(" ");
  return svg.getAttribute("role") !== "img" || !(svg.getAttribute("aria-label") || named).trim();
}).map((svg) => svg.outerHTML.slice(0, 80))"""
"""Figures without an alternative in words."""


@pytest.fixture(scope="module")
def axe():
    """The accessibility checker axe-core, which axe-playwright-python carries along."""
    module = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs the extra `browser`")
    return module.Axe()


@pytest.mark.parametrize("name", NAMES)
def test_no_error_is_logged_and_no_request_leaves_the_page(see, pages, name):
    seen = see(pages[name])
    seen.page.wait_for_timeout(200)
    assert seen.messages == []
    assert seen.requests == [pages[name].as_uri()]


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_has_a_text_alternative(see, pages, name):
    page = see(pages[name]).page
    assert page.locator("svg[role=img]").count() >= 3
    assert page.evaluate(UNNAMED) == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390])
@pytest.mark.parametrize("name", NAMES)
def test_axe_finds_nothing(see, pages, axe, name, width, dark):
    page = see(pages[name], width=width, dark=dark).page
    for details in page.locator("details").all():
        details.evaluate("element => element.open = true")
    found = axe.run(page).response
    checked = {rule["id"] for rule in found["passes"]}
    assert {"color-contrast", "svg-img-alt", "document-title"} <= checked
    assert [(rule["id"], [node["html"][:90] for node in rule["nodes"]][:4]) for rule in found["violations"]] == []


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_nothing_sticks_out_of_the_page(see, pages, name, width):
    page = see(pages[name], width=width).page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(OVERFLOW) == []


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [1200, 390])
def test_words_in_tables_lie_within_their_cells(see, pages, name, width):
    assert see(pages[name], width=width).page.evaluate(CROWDED) == []


@pytest.mark.parametrize("name", NAMES)
def test_nothing_sticks_out_of_a_printed_page(see, pages, name):
    page = see(pages[name], width=A4, media="print").page
    assert page.evaluate("document.documentElement.scrollWidth") <= A4
    assert page.evaluate(OVERFLOW) == []
    assert page.evaluate(CROWDED) == []
    assert page.locator("nav").is_hidden()
    settings = page.locator("details dl")
    assert settings.first.is_visible(), "what is folded on the screen is printed"


@pytest.mark.parametrize("name", NAMES)
def test_words_in_figures_lie_within_them(see, pages, name):
    page = see(pages[name]).page
    assert page.evaluate(OVERLAPS) == []
    cut = page.evaluate("""() => [...document.querySelectorAll("figure > svg")].flatMap((svg) => {
      const box = svg.getBoundingClientRect();
      return [...svg.querySelectorAll("text")].filter((text) => {
        const own = text.getBoundingClientRect();
        const within = own.left > box.left - 2 && own.right < box.right + 2;
        return !within || own.top < box.top - 2 || own.bottom > box.bottom + 2;
      }).map((text) => text.textContent);
    })""")
    assert cut == []


@pytest.mark.parametrize(("width", "height", "screens"), [(1200, 900, 1), (390, 844, 2)], ids=["desktop", "phone"])
@pytest.mark.parametrize("name", ["one", "unscored", "internal"])
def test_the_first_screen_holds_what_was_asked_the_four_answers_and_what_to_do(
    see, pages, name, width, height, screens, tmp_path
):
    page = see(pages[name], width=width, height=height).page
    assert page.locator("#verdict .answers > div").count() == 4
    for what in ("h1", "#verdict .answers > div >> nth=3", "#verdict ul >> nth=0"):
        box = page.locator(what).bounding_box()
        assert box["y"] + box["height"] < screens * height, what
    picture = tmp_path / "first.png"
    page.screenshot(path=picture)
    assert picture.stat().st_size > 20_000


@pytest.mark.parametrize("width", [1200, 390])
@pytest.mark.parametrize("name", ["seeds", "methods"])
def test_the_verdicts_of_several_runs_stand_below_each_other(see, pages, name, width):
    page = see(pages[name], width=width).page
    boxes = [verdict.bounding_box() for verdict in page.locator("div.verdict").all()]
    assert len(boxes) == (2 if name == "methods" else 1)
    for one, two in itertools.pairwise(boxes):
        assert one["y"] + one["height"] <= two["y"]
    assert ".jsonl" not in page.locator("body").inner_text()


def test_hostile_strings_are_text(see, pages):
    seen = see(pages["hostile"])
    page = seen.page
    assert "<script>alert(1)</script>" in page.locator("body").inner_text()
    assert page.locator("script").count() == 1
    assert page.locator("body img, body b").count() == 0
    assert seen.messages == []


def test_tables_are_sorted_on_request(see, pages):
    page = see(pages["one"]).page
    table = page.locator("table.wide").first
    button = table.locator("thead th:nth-child(3) button")

    def values() -> list[float]:
        return [float(cell.inner_text().split()[0]) for cell in table.locator("tbody td:nth-child(3)").all()]

    button.click()
    assert values() == sorted(values())
    assert table.locator("thead th:nth-child(3)").get_attribute("aria-sort") == "ascending"
    button.press("Enter")
    assert values() == sorted(values(), reverse=True)


def test_200_metrics_are_all_there(see, pages):
    page = see(pages["many"]).page
    assert page.locator("section#scores tbody tr").count() >= 200
    assert page.locator("section#scores td.plot svg").count() >= 200


def test_forget_texts_are_shown_under_a_red_banner(see, pages):
    page = see(pages["internal"]).page
    banner = page.locator("[role=alert]")
    assert "For internal use only" in banner.inner_text()
    assert banner.bounding_box()["y"] < 100
    red, green, blue = page.evaluate(
        "getComputedStyle(document.querySelector('[role=alert]')).backgroundColor.match(/[0-9]+/g).map(Number)"
    )
    assert red > 120 > max(green, blue) + 60
    assert "Who is Zarquon?" in page.locator("#examples").inner_text()


def test_the_page_is_whole_without_scripts(chromium, see, pages: dict[str, Path]):
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(pages["one"].as_uri())
    assert page.locator("table").count() > 8
    assert page.locator("figure svg").count() == see(pages["one"]).page.locator("figure svg").count() > 8
    context.close()
