from __future__ import annotations

import pytest

from cram_composer.analysis.console import table_lines


def test_columns_are_aligned_and_nothing_is_styled_wrapped_or_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "20")
    rows = [["run", "loss", ""], ["[bold]a[/]", "1.25", "x" * 300], ["≈ b", "10", ""]]
    assert table_lines(rows, right=(1,)) == [
        "run         loss",
        f"[bold]a[/]  1.25  {'x' * 300}",
        "≈ b           10",
    ]


def test_wide_characters_take_two_columns() -> None:
    assert table_lines([["語", "1"], ["ab", "2"]]) == ["語  1", "ab  2"]
