"""Pictures of a report: python tests/browser/screenshots.py PAGE FOLDER [NAME ...].

Names are the first screen on a desktop (light or dark), a phone and on A4 as printed, or ids of sections, such as
`membership`. Pictures are PNG with few colours, small enough for docs/images.
"""

import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

VIEWS = {
    "desktop": {"viewport": {"width": 1180, "height": 1000}},
    "dark": {"viewport": {"width": 1180, "height": 1000}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2},
    "print": {"viewport": {"width": 794, "height": 1123}},
}
COLORS = 128


def main(page: Path, folder: Path, *names: str) -> None:
    """Write `<stem>-<view>.png` of the first screen of every view, and the page as it prints."""
    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        for name in names or VIEWS:
            tab = browser.new_context(**VIEWS.get(name, VIEWS["desktop"])).new_page()
            tab.emulate_media(media="print" if name == "print" else "screen")
            tab.goto(page.resolve().as_uri())
            if name == "print":
                tab.add_style_tag(content="body { padding: 15mm 14mm !important; }")  # the margins of the paper
            path = folder / f"{page.stem}-{name}.png"
            tab.screenshot(path=path, **({} if name in VIEWS else {"full_page": True, "clip": _around(tab, name)}))
            Image.open(path).convert("RGB").quantize(COLORS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
                path, optimize=True
            )
            print(f"{path}  {path.stat().st_size / 1000:.0f} kB")
        browser.close()


def _around(tab: Page, section: str) -> dict[str, float]:
    """A section with a margin."""
    box = tab.locator(f"#{section}").bounding_box()
    return {"x": box["x"] - 24, "y": box["y"] + 2, "width": box["width"] + 48, "height": box["height"] + 16}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
