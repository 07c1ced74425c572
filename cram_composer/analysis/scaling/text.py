"""Console output of `cram scaling-law`."""

from __future__ import annotations

from collections.abc import Sequence

from cram_composer.analysis.console import table_lines
from cram_composer.analysis.html.formatting import duration, short_count
from cram_composer.analysis.scaling.law import Fit
from cram_composer.analysis.scaling.prediction import Optimum, Scaling, optimal_exponent, parameters_of

LAWS = {
    ("parameters", "tokens"): "loss = E + A / parameters^a + B / tokens^b",
    ("FLOPs",): "loss = E + C / FLOPs^c, of the runs that none beats with less compute",
}
_NOTHING = 1e-6
_TERMS = {"parameters": ("A", "a"), "tokens": ("B", "b"), "FLOPs": ("C", "c")}


def console_text(scaling: Scaling) -> str:
    """Text of the laws with the intervals of their parameters, and predictions of runs that were held back."""
    lines = [f"{len(scaling.points)} runs"] + [f"note: {note}" for note in scaling.notes]
    if scaling.law is None:
        lines.append(f"note: {scaling.missing}")
    else:
        lines += ["", LAWS["parameters", "tokens"], *_law(scaling.law, ("parameters", "tokens"))]
        value, low, high = optimal_exponent(scaling.law)
        lines.append(f"  the best size grows as compute^{value:.2f} ({low:.2f} to {high:.2f})")
    if scaling.compute is not None:
        lines += [
            "",
            f"{LAWS['FLOPs',]} ({len(scaling.frontier)})",
            *_law(scaling.compute, ("FLOPs",)),
        ]
    if scaling.held_back:
        lines += ["", "runs that the law has not seen", *_indented(held_back_cells(scaling), numeric=(1, 2, 3, 4, 6))]
    return "\n".join(lines)


def _law(result: Fit, names: Sequence[str]) -> list[str]:
    return [
        *_indented(law_cells(result, names), numeric=(1,)),
        f"  runs are within {100 * result.spread:.2f} % of it (one standard deviation)",
    ]


def law_cells(result: Fit, names: Sequence[str]) -> list[tuple[str, ...]]:
    """Name, value and 95 % interval of every parameter."""
    letters = ["E", *(letter for name in names for letter in _TERMS[name])]
    rows = parameters_of(result, names)
    return [
        ("", "value", "95 % interval"),
        *(
            (letter, _number(v), f"{_number(low)} to {_number(high)}")
            for letter, (_, v, low, high) in zip(letters, rows, strict=True)
        ),
    ]


def _number(value: float) -> str:
    return "0" if abs(value) < _NOTHING else f"{value:.4g}"  # the fit's lower bound


def held_back_cells(scaling: Scaling) -> list[tuple[str, ...]]:
    """Measured and predicted loss of every run that was held back."""
    rows: list[tuple[str, ...]] = [
        ("run", "parameters", "tokens", "measured", "predicted", "95 % interval", "off by", "")
    ]
    for one in scaling.held_back:
        value, low, high = one.predicted
        rows.append(
            (
                one.point.name,
                short_count(one.point.parameters),
                short_count(one.point.tokens),
                f"{one.point.loss:.4f}",
                f"{value:.4f}",
                f"{low:.4f} to {high:.4f}",
                f"{100 * (value / one.point.loss - 1):+.2f} %",
                "inside" if low <= one.point.loss <= high else "outside",
            )
        )
    return rows


def prediction_line(parameters: float, tokens: float, predicted: tuple[float, float, float]) -> str:
    """Sentence with a predicted loss."""
    value, low, high = predicted
    return (
        f"{short_count(parameters)} parameters on {short_count(tokens)} tokens: loss {value:.4f} "
        f"(95 % interval of one run {low:.4f} to {high:.4f})"
    )


def optimum_line(found: Optimum, seconds: float, speed: str) -> str:
    """Sentence with the best size; `speed` describes the assumed speed."""
    size, low, high = found.parameters
    loss, least, most = found.loss
    text = (
        f"best in {duration(seconds)} {speed}: {short_count(size)} parameters ({short_count(low)} to "
        f"{short_count(high)}) on {short_count(found.tokens)} tokens, loss {loss:.4f} ({least:.4f} to {most:.4f})"
    )
    return text + ("; beyond the sizes measured, so measure one there" if found.outside else "")


def _indented(cells: Sequence[Sequence[str]], numeric: Sequence[int]) -> list[str]:
    return [f"  {line}" for line in table_lines(cells, numeric)]
