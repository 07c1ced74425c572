"""Style of figures for light and dark pages, and their output as inline SVG and PNG."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Figures are drawn in the light colours; inline SVG refers to them by CSS variables, so that pages can be dark.
# Series colours are those of Okabe and Ito (2008), distinguishable with common colour vision deficiencies.
LIGHT = {
    "card": "#ffffff",
    "ink": "#1b2028",
    "muted": "#565f6c",
    "grid": "#dfe3e8",
    "series-0": "#0072b2",
    "series-1": "#d55e00",
    "series-2": "#009e73",
    "series-3": "#b8558f",
    "series-4": "#56b4e9",
    "series-5": "#e69f00",
    "inside-other": "#8a929e",
    "outside-0": "#4f5763",
    "outside-1": "#9aa2ae",
    "outside-2": "#6f7885",
    "outside-3": "#bcc3cc",
}
DARK = {
    "card": "#1a1e25",
    "ink": "#e8ebef",
    "muted": "#a6afbb",
    "grid": "#343b46",
    "series-0": "#4ea5e6",
    "series-1": "#f0834a",
    "series-2": "#35c79c",
    "series-3": "#e29ac6",
    "series-4": "#a5d8f8",
    "series-5": "#f3c14d",
    "inside-other": "#7f8896",
    "outside-0": "#c3cad3",
    "outside-1": "#7d8694",
    "outside-2": "#a1a9b5",
    "outside-3": "#5f6875",
}
SERIES = [LIGHT[f"series-{index}"] for index in range(6)]
DASHES = ["-", "--", ":", "-."]
LEDGER = {
    "train": LIGHT["series-0"],
    "compile": LIGHT["series-3"],
    "data": LIGHT["series-5"],
    "eval": LIGHT["series-2"],
    "checkpoint": LIGHT["series-4"],
    "lost": LIGHT["series-1"],
    "other": LIGHT["inside-other"],
    "setup": LIGHT["outside-0"],
    "data_build": LIGHT["outside-1"],
    "final_checkpoint": LIGHT["series-4"],
    "final_eval": LIGHT["outside-2"],
    "export": LIGHT["outside-3"],
    "upload": LIGHT["outside-1"],
}
WIDTH = 4.6  # inches; on a phone, 1 pt is then about 1 CSS pixel, so text stays readable

RC: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # bundled with matplotlib: the same layout on every machine
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.labelsize": 10.5,
    "axes.labelcolor": LIGHT["muted"],
    "axes.edgecolor": LIGHT["muted"],
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.xmargin": 0.01,
    "axes.unicode_minus": True,
    "grid.color": LIGHT["grid"],
    "grid.linewidth": 0.8,
    "text.color": LIGHT["ink"],
    "xtick.color": LIGHT["muted"],
    "ytick.color": LIGHT["muted"],
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "legend.handlelength": 1.6,
    "legend.columnspacing": 1.4,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "svg.fonttype": "none",  # text elements: selectable, in the font of the page, half the bytes
    "svg.hashsalt": "cram-composer",
    "text.parse_math": False,  # run names may contain dollar signs
}


@dataclass(frozen=True)
class Picture:
    """A drawn figure: `name` is the stem of its file, `caption` the text below it, `alt` its description."""

    name: str
    caption: str
    alt: str
    figure: Figure


@contextmanager
def house_style() -> Iterator[None]:
    """Draw and save with the settings of this module, independent of the user's matplotlibrc."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(cast("Any", RC))
        yield


def series_style(index: int) -> tuple[str, str]:
    """Return the colour and dash pattern of the index-th series; patterns change when colours repeat."""
    return SERIES[index % len(SERIES)], DASHES[index // len(SERIES) % len(DASHES)]


def css_variables(colours: dict[str, str]) -> str:
    """Format colours as CSS declarations: `--ink: #1b2028; ...`."""
    return " ".join(f"--{name}: {value};" for name, value in colours.items())


def to_png(picture: Picture) -> bytes:
    """Return the figure as a PNG, 1012 pixels wide on white, reproducible byte by byte."""
    buffer = io.BytesIO()
    with house_style():
        picture.figure.savefig(buffer, format="png", dpi=220, facecolor=LIGHT["card"], metadata={"Software": None})
    return buffer.getvalue()


def to_inline_svg(picture: Picture) -> str:
    """Return the figure as an <svg> element: transparent, colours as CSS variables, ids prefixed with its name.

    Text takes the font of the page; `alt` becomes the accessible name.
    """
    buffer = io.BytesIO()
    with house_style():
        picture.figure.savefig(
            buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    svg = buffer.getvalue().decode()
    opening = re.search(r"<svg\b[^>]*>", svg)
    assert opening is not None
    view_box = re.search(r'viewBox="[^"]*"', opening.group())
    assert view_box is not None
    body = svg[opening.end() :]
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->\s*", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="', f'id="{picture.name}-', body)
    body = body.replace("url(#", f"url(#{picture.name}-").replace('xlink:href="#', f'href="#{picture.name}-')
    for name, value in LIGHT.items():
        body = body.replace(value, f"var(--{name}, {value})")
    return f'<svg {view_box.group()} role="img" aria-label="{html.escape(picture.alt)}">{body}'
