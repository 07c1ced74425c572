"""docs/reference/configuration.md is generated from the schema."""

from __future__ import annotations

from cram_composer.config.layers import flatten
from cram_composer.config.schema.run import RunConfig
from cram_composer.reference.key_page import key_page
from tests.conftest import REPOSITORY


def test_the_page_is_current():
    page = (REPOSITORY / "docs" / "reference" / "configuration.md").read_text(encoding="utf-8")
    assert page == key_page(), "run: cram schema --markdown > docs/reference/configuration.md"


def test_every_key_of_a_run_has_a_meaning_default_and_type():
    page = key_page().partition("# Card of a recipe")[0]
    for key in flatten(RunConfig().model_dump()):
        assert f"| `{key.rpartition('.')[2]}` |" in page or key.endswith(".name"), key
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    assert all(row[1].strip() and row[3].strip(" |") for row in rows)
