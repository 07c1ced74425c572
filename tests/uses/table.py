"""The table of docs/reference/exports.md: `python -m tests.uses.table PYTHON[:PACKAGES] ...` writes it.

Each argument names the Python of an environment with another version of transformers, and a folder of further packages.
The exports are written by the Python that runs this.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from cram_composer.storage.files import write_atomic
from tests.conftest import REPOSITORY
from tests.uses.exports import FORMS, run_uses, write_export

PATH = REPOSITORY / "docs" / "reference" / "exports.md"
_START, _END = "<!-- uses -->\n", "<!-- end -->\n"


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """Return a row per use and a column per form and version: the largest difference, or the reason why it fails."""
    columns = [(form, one) for form, of_form in results.items() for one in of_form]
    names = [f"{form}, transformers {one['versions']['transformers']}" for form, one in columns]
    lines = [f"| use | {' | '.join(names)} |", f"| --- |{' --- |' * len(names)}"]
    for use in columns[0][1]["uses"]:
        cells = [_cell(one["uses"][use]) for _, one in columns]
        lines.append(f"| {use} | {' | '.join(cells)} |")
    torches = {one["versions"]["transformers"]: one["versions"]["torch"] for _, one in columns}
    note = "; ".join(f"transformers {version} with torch {torch}" for version, torch in torches.items())
    return "\n".join(lines) + f"\n\nMeasured with {note}.\n"


def _cell(outcome: float | str) -> str:
    return outcome.replace("|", "\\|") if isinstance(outcome, str) else f"works, {outcome:.0e}"


def main() -> None:
    """Run every use of both forms in every environment, and write the table."""
    environments = [argument.partition(":")[::2] for argument in sys.argv[1:] or [sys.executable]]
    results: dict[str, list[dict[str, Any]]] = {form: [] for form in FORMS}
    with tempfile.TemporaryDirectory() as scratch:
        for form, found in results.items():
            folder = Path(scratch) / form
            folder.mkdir()
            export = write_export(form, folder)
            for python, packages in environments:
                found.append(run_uses(export, folder, python=python, packages=packages))
                print(form, found[-1])
    text = PATH.read_text(encoding="utf-8")
    before, rest = text.split(_START)
    write_atomic(PATH, before + _START + "\n" + table(results) + "\n" + _END + rest.split(_END)[1])


if __name__ == "__main__":
    main()
