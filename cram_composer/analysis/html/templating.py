"""Render HTML pages from the templates in this folder, with escaped values and errors for undefined names."""

from __future__ import annotations

import re
from typing import Any

from cram_composer import __version__
from cram_composer.analysis.html.style import DARK, LIGHT, css_variables

_BREAK = re.compile(r"(?<=\w)[._/+](?=[A-Za-z])")  # where dotted keys, paths and lists of recipes may wrap


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
    environment.filters["breakable"] = lambda text: Markup(_BREAK.sub(r"\g<0><wbr>", str(escape(text))))
    return environment.get_template(template).render(
        version=__version__, light=css_variables(LIGHT), dark=css_variables(DARK), **values
    )
