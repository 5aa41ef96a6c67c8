"""Matplotlib set up for this report: colours that colour-blind readers tell apart, and SVG that fits into a page.

A figure is drawn once. In the page its colours become CSS variables, so that it follows the reader's light or dark
scheme, and its text stays text; as a file it keeps the colours below.
"""

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from expunge.utils.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, MUTED, GRID = "#1b1f24", "#59636e", "#d9dee3"
GROUP_COLORS = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#8a6d00", "#3b8fc4")
"""After Okabe and Ito, darkened where they would be faint on white; colour i of a group is `--c<i>` in the page."""
SET_COLORS = {"forget": "#d55e01", "retain": "#0072b3", "holdout": "#59636f"}
MARKERS = ("o", "s", "^", "v", "P", "X")
DASHES = ("-", "--", "-.", ":", (0, (6, 1)), (0, (3, 1, 1, 1)))
WIDTH, HEIGHT = 4.0, 2.45
"""Inches."""

_VARIABLES = {
    INK: "currentColor",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    **{color: f"var(--c{i})" for i, color in enumerate(GROUP_COLORS, 1)},
    **{color: f"var(--set-{name})" for name, color in SET_COLORS.items()},
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "expunge",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.titleweight": "normal",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.handlelength": 1.8,
    "legend.borderaxespad": 0,
    "legend.columnspacing": 1.2,
    "pdf.fonttype": 42,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


@dataclass(frozen=True)
class Drawn:
    """A figure with its words.

    Attributes:
        name: Name of the file, and prefix of its ids in the page.
        title: Its heading.
        says: What it shows, for those who do not see it.
        figure: The drawing.
    """

    name: str
    title: str
    says: str
    figure: Figure


@contextmanager
def style() -> Iterator[None]:
    """Draw inside with the report's settings, whatever the user's are."""
    plain = {name: value for name, value in matplotlib.rcParamsDefault.items() if name != "backend"}
    with matplotlib.rc_context(plain | _STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        yield


def canvas(xlabel: str, ylabel: str, *, width: float = WIDTH, height: float = HEIGHT) -> tuple[Figure, "Axes"]:
    """An empty figure with labelled axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    return figure, axes


def legend(axes: "Axes", *, columns: int = 3) -> None:
    """The legend above the axes, where it covers no data, in as many columns as fit; the figure grows by its height."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    handles, labels = axes.get_legend_handles_labels()
    for ncols in range(min(columns, len(labels)), 0, -1):
        drawn = figure.legend(handles, labels, ncols=ncols, loc="outside upper left")
        size = drawn.get_window_extent()
        if ncols == 1 or size.width <= 0.98 * figure.bbox.width:
            figure.set_figheight(figure.get_figheight() + size.height / figure.dpi)
            return
        drawn.remove()


def whole_numbers(axes: "Axes") -> None:
    """Steps are counted in whole numbers."""
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def brief(text: str, length: int = 26) -> str:
    """A name that fits into a figure."""
    text = " ".join(printable(text).split())
    return text if len(text) <= length else text[: length - 1] + "…"


def slug(text: str) -> str:
    """A name for files and ids."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "figure"


def listed(parts: Sequence[str], most: int = 12) -> str:
    """Clauses as one sentence; of many, the first."""
    rest = f"; and {len(parts) - most} more" if len(parts) > most else ""
    return "; ".join(parts[:most]) + rest + "."


def inline_svg(drawn: Drawn) -> str:
    """A figure as an SVG element of a page: accessible, in the page's colours, with ids of its own."""
    name, title, description = drawn.name, drawn.title, printable(drawn.says)
    text = _svg(drawn.figure)
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\1{name}-", text)
    for color, variable in _VARIABLES.items():
        text = text.replace(color, variable)
    view = re.search(r'viewBox="[^"]*"', text)
    head = (
        f'<svg {view[0] if view else ""} role="img" aria-labelledby="{name}-title {name}-desc">'
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-desc">{escape(description)}</desc>'
    )
    text = re.sub(r"^<svg[^>]*>", lambda match: head, text)
    return re.sub(r"\n\s*", "\n", text)


def save(figure: Figure, stem: Path) -> list[tuple[Path, bytes]]:
    """A figure as the contents of files: PNG (300 dots per inch), SVG and PDF."""
    _settle(figure)
    files = []
    for kind in ("png", "svg", "pdf"):
        stream = io.BytesIO()
        dates = {"Software": None} if kind == "png" else {"Date" if kind == "svg" else "CreationDate": None}
        figure.savefig(stream, format=kind, dpi=300, metadata=dates, facecolor="white")
        files.append((stem.with_suffix(f".{kind}"), stream.getvalue()))
    return files


def _svg(figure: Figure) -> str:
    _settle(figure)
    stream = io.StringIO()
    # `savefig` draws everything twice
    FigureCanvasSVG(figure).print_svg(stream, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return stream.getvalue()


def _settle(figure: Figure) -> None:
    """Lay the figure out, once for all formats."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine("none")
