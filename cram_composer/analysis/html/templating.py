"""Render HTML pages from the templates in this folder, with escaped values and errors for undefined names."""

from __future__ import annotations

from typing import Any

from cram_composer import __version__
from cram_composer.analysis.html.style import DARK, LIGHT, css_variables


def render(template: str, **values: Any) -> str:
    """Render `template` with `values`, the colours and the version of cram-composer."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup, escape

    environment = Environment(
        loader=PackageLoader("cram_composer.analysis.html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Long keys and paths wrap after dots, underscores and slashes only.
    environment.filters["breakable"] = lambda text: Markup(
        str(escape(text)).replace(".", ".<wbr>").replace("_", "_<wbr>").replace("/", "/<wbr>")
    )
    return environment.get_template(template).render(
        version=__version__, light=css_variables(LIGHT), dark=css_variables(DARK), **values
    )
