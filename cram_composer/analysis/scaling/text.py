"""Console output of `cram scaling-law`."""

from __future__ import annotations

from collections.abc import Sequence

from cram_composer.analysis.console import table_lines
from cram_composer.analysis.scaling.forecast import Forecast
from cram_composer.analysis.scaling.law import Fit
from cram_composer.analysis.scaling.prediction import Optimum, Scaling, law_variables, optimal_exponent, parameters_of
from cram_composer.analysis.scaling.scores import STEP, ScoreTrend
from cram_composer.config.formatting import duration, short_count, signed

LAWS = {
    ("parameters", "tokens"): "loss = E + A / parameters^a + B / tokens^b",
    ("parameters", "full-rate tokens"): "loss = E + A / parameters^a + B / S^b - G F, of losses in the loop",
    ("full-rate tokens",): "loss = E + B / S^b - G F, of losses in the loop",
    ("FLOPs",): "loss = E + C / FLOPs^c, fitted to the best runs at their compute",
}
_NOTHING = 1e-6
_TERMS = {"parameters": ("A", "a"), "tokens": ("B", "b"), "full-rate tokens": ("B", "b"), "FLOPs": ("C", "c")}


def console_text(scaling: Scaling) -> str:
    """Format the laws with intervals of their parameters, and the predictions of held-back runs."""
    lines = [f"{len(scaling.points)} runs"] + [f"note: {note}" for note in scaling.notes]
    if scaling.law is None:
        lines.append(f"note: {scaling.missing}")
    else:
        names = law_variables(scaling.law)
        lines += ["", LAWS[names], *_law(scaling.law, names)]
        if len(names) > 1:
            value, low, high = optimal_exponent(scaling.law)
            lines.append(f"  best size proportional to compute^{value:.2f} ({low:.2f} to {high:.2f})")
    if scaling.compute is not None:
        lines += [
            "",
            f"{LAWS['FLOPs',]} ({len(scaling.frontier)})",
            *_law(scaling.compute, ("FLOPs",)),
        ]
    if scaling.held_back:
        lines += ["", "held-back runs", *_indented(held_back_cells(scaling), numeric=(1, 2, 3, 4, 6))]
    return "\n".join(lines)


def _law(result: Fit, names: Sequence[str]) -> list[str]:
    return [
        *_indented(law_cells(result, names), numeric=(1,)),
        f"  residuals: {100 * result.spread:.2f} % of the loss (one standard deviation)",
    ]


def law_cells(result: Fit, names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return a header and the name, value and 95 % interval of every parameter."""
    letters = ["E", *(letter for name in names for letter in _TERMS[name]), *["G"] * bool(result.law.annealing)]
    rows = parameters_of(result, names)
    return [
        ("", "value", "95 % interval"),
        *(
            (letter, _number(letter, v), f"{_number(letter, low)} to {_number(letter, high)}")
            for letter, (_, v, low, high) in zip(letters, rows, strict=True)
        ),
    ]


def _number(letter: str, value: float) -> str:
    is_nothing = letter != "G" and abs(value) < _NOTHING  # the fit's lower bound; G is per token and as small
    return "0" if is_nothing else f"{value:.4g}"


def held_back_cells(scaling: Scaling) -> list[tuple[str, ...]]:
    """Return a header and the measured and predicted loss of every held-back run."""
    rows: list[tuple[str, ...]] = [
        ("run", "parameters", "tokens", "measured, nats", "predicted, nats", "95 % interval", "error", "")
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
                f"{signed(100 * (value / one.point.loss - 1), 2)} %",
                "inside" if low <= one.point.loss <= high else "outside",
            )
        )
    return rows


def forecast_cells(found: Forecast) -> list[tuple[str, ...]]:
    """Return a header and the difference of every size with its forecast from the smaller ones."""
    rows: list[tuple[str, ...]] = [("size", "parameters", "pairs", "difference, nats", "forecast, nats", "")]
    for size in found.sizes:
        told = "" if size.forecast is None else signed(size.forecast, 4)
        verdict = "" if size.is_decided else "undecided"
        if size.is_right is not None:
            verdict = "right" if size.is_right else "wrong"
        pairs = str(len(size.differences))
        rows.append((size.shape, short_count(size.parameters), pairs, signed(size.mean, 4), told, verdict))
    return rows


def forecast_sentences(found: Forecast) -> list[str]:
    """Say how often forecasts were right, how the difference changes with size, and what the next size will show."""
    known = [size.is_right for size in found.sizes if size.is_right is not None]
    sentences = [f"forecasts of the better recipe from smaller sizes: {sum(known)} of {len(known)} right"]
    if found.slope is not None and found.next_difference is not None:
        value, low, high = found.slope
        kind = "a mere shift of the curve is not ruled out" if low <= 0.0 <= high else "the slope of the curve differs"
        sentences.append(
            f"per doubling of the parameters: {signed(value, 4)} nats ({signed(low, 4)} to {signed(high, 4)}); {kind}"
        )
        value, low, high = found.next_difference
        sentences.append(
            f"forecast at {short_count(found.next_parameters)} parameters: {signed(value, 4)} nats "
            f"({signed(low, 4)} to {signed(high, 4)})"
        )
    return sentences


def forecast_text(found: Forecast) -> str:
    """Format the differences by size and what they say about the next one."""
    table = _indented(forecast_cells(found), numeric=(1, 2, 3, 4))
    notes = [f"note: {note}" for note in found.notes]
    return "\n".join(["", "difference from the runs of --against", *table, *notes, *forecast_sentences(found)])


def score_cells(trends: Sequence[ScoreTrend]) -> list[tuple[str, ...]]:
    """Return a header and what a lower loss is worth in every score, with the expected score if a loss is predicted."""
    expects = any(trend.expected for trend in trends)
    header = ("score", "runs", f"points per {STEP:g} nats", "95 % interval", "correlation")
    rows: list[tuple[str, ...]] = [header + ("expected", "95 % interval of one run") * expects]
    for trend in trends:
        gain, low, high = trend.gain
        shown = (trend.title, str(trend.runs), signed(gain, 2), f"{signed(low, 2)} to {signed(high, 2)}")
        expected: tuple[str, ...] = ()
        if trend.expected is not None:
            value, least, most = trend.expected
            expected = (f"{value:.1f}", f"{least:.1f} to {most:.1f}")
        rows.append((*shown, signed(trend.correlation, 2), *expected))
    return rows


def score_text(trends: Sequence[ScoreTrend], protocol: str) -> str:
    """Format what a lower loss is worth in scores."""
    return "\n".join(["", f"scores of {protocol} for a lower loss", *_indented(score_cells(trends), (1, 2, 4, 5))])


def prediction_line(parameters: float, tokens: float, predicted: tuple[float, float, float]) -> str:
    """Format a predicted loss as a sentence."""
    value, low, high = predicted
    return (
        f"{short_count(parameters)} parameters on {short_count(tokens)} tokens: loss {value:.4f} nats "
        f"(95 % interval of one run {low:.4f} to {high:.4f})"
    )


def optimum_line(found: Optimum, seconds: float, speed: str) -> str:
    """Format the best size as a sentence; `speed` describes the assumed speed."""
    size, low, high = found.parameters
    loss, least, most = found.loss
    text = (
        f"best in {duration(seconds)} {speed}: {short_count(size)} parameters ({short_count(low)} to "
        f"{short_count(high)}) on {short_count(found.tokens)} tokens, loss {loss:.4f} nats ({least:.4f} to {most:.4f})"
    )
    return text + ("; this is beyond the measured sizes, so train one of this size to check" if found.outside else "")


def _indented(cells: Sequence[Sequence[str]], numeric: Sequence[int]) -> list[str]:
    return [f"  {line}" for line in table_lines(cells, numeric)]
