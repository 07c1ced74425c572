"""Comparison of groups: verdicts, intervals, refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cram_composer.analysis.compare.comparability import find_cautions
from cram_composer.analysis.compare.compare import Pair, choose_baseline, compare
from cram_composer.analysis.compare.groups import Group, make_group, read_groups
from cram_composer.analysis.compare.text import as_json, console_text, overview, row_cells
from cram_composer.analysis.runs.run import RunData, load_run
from cram_composer.errors import CramError
from tests.analysis.conftest import DATA

MUON = {"settings": {"optimizer.name": "muon"}}


def pair(challenger: list[Path], baseline: list[Path]) -> Pair:
    groups = [make_group(name, [load_run(p) for p in paths]) for name, paths in (("a", challenger), ("b", baseline))]
    return compare(groups, groups[1])[0]


def by_measure(found: Pair) -> dict[str, Any]:
    return {row.measure: row for row in found.rows}


def test_identical_configurations_are_not_distinguishable(make_seeds) -> None:
    noise = np.random.default_rng(4).normal(4.2, 0.01, 6)
    found = pair(make_seeds("a", noise[:3], first_seed=4), make_seeds("b", noise[3:]))
    assert found.verdict.word == "not distinguishable"
    assert found.rows[0].difference.method == "Welch"
    assert "with 80 % power takes about" in found.verdict.text


def test_clear_harm_is_worse_and_clear_help_is_better(make_seeds) -> None:
    base, other = make_seeds("base", [4.20, 4.22, 4.21]), make_seeds("lion", [4.50, 4.53, 4.515], **MUON)
    found = pair(other, base)
    assert found.verdict.word == "worse"
    difference = found.rows[0].difference
    assert (difference.method, difference.runs) == ("paired by seed", 3)
    assert difference.mean == pytest.approx(0.305)
    assert "+0.3050 nats (95 % interval" in found.verdict.text
    assert pair(base, other).verdict.word == "better"


def test_seeds_that_are_missing_are_counted(make_seeds) -> None:
    # Differences 0.1 +- 0.1: with one standard deviation, ten pairs are needed (statsmodels), seven more.
    found = pair(make_seeds("a", [4.2, 4.3, 4.4], **MUON), make_seeds("b", [4.2, 4.2, 4.2]))
    assert found.verdict.word == "not distinguishable"
    assert "takes about 10 seeds of each, 7 more; 3 seeds detect 0.3264 nats or more" in found.verdict.text


def test_one_run_each_gives_no_verdict(make_seeds) -> None:
    found = pair(make_seeds("a", [4.9], **MUON), make_seeds("b", [4.2]))
    assert found.verdict.word == "no verdict"
    assert "+0.7000" in found.verdict.text


def test_a_key_that_earlier_versions_lack_does_not_divide_a_group(make_seeds) -> None:
    older, newer = make_seeds("older", [4.0]), make_seeds("newer", [4.1], first_seed=2, settings={"budget": "600s"})
    for path, budget in ((older[0], {"wall": "600s"}), (newer[0], {"wall": "600s", "epochs": None})):
        record = json.loads((path / "record.json").read_text())
        record["config"]["budget"] = budget
        (path / "record.json").write_text(json.dumps(record))
    assert len(read_groups([str(older[0]), str(newer[0])])) == 1


def test_uneven_compilation_is_a_caution(make_run) -> None:
    paths = [make_run(name, seed=seed) for seed, name in enumerate(("cold", "warm"), 1)]
    for path, seconds in zip(paths, (60.0, 6.0), strict=True):
        record = json.loads((path / "record.json").read_text())
        record["ledger"]["inside"]["compile"] = seconds
        record["ledger"]["inside_total"] = 600.0
        (path / "record.json").write_text(json.dumps(record))
    cautions = find_cautions([load_run(path) for path in paths])
    assert [line for line in cautions if line.startswith("compilation took 1.0 % to 10.0 % of a run")]
    assert not find_cautions([load_run(paths[0])] * 2)


def test_groups_without_a_verdict_share_one_paragraph(make_seeds) -> None:
    seeds = {"base": [4.2], "b": [4.9], "c": [4.1], "d": [4.5, 4.51, 4.52]}
    made = {name: make_seeds(name, losses, **({} if name == "base" else MUON)) for name, losses in seeds.items()}
    groups = [make_group(name, [load_run(p) for p in paths]) for name, paths in made.items()]
    text = " ".join(overview(groups, compare(groups, groups[0])).split())
    assert text.count("NO VERDICT") == 1
    assert "NO VERDICT on b, c: one run gives no spread" in text and "two more seeds of each and of base" in text
    assert "WORSE: d is worse than base" in text and "b against base" not in text
    two = groups[:2]
    alone = " ".join(overview(two, compare(two, two[0])).split())
    assert "NO VERDICT: b against base: held-out loss +0.7000 nats" in alone


def test_false_positives_are_as_few_as_promised(make_seeds) -> None:
    """At most 5 % of verdicts are wrong for groups of three runs that differ by noise only."""
    runs = [load_run(path, curves=False) for path in make_seeds("r", [4.2] * 6)]
    groups = [make_group("a", runs[:3]), make_group("b", runs[3:])]
    random, wrong = np.random.default_rng(0), 0
    for _ in range(150):
        for run in runs:
            run.record["metrics"]["validation_loss"] = float(random.normal(4.2, 0.01))
        wrong += compare(groups, groups[1])[0].verdict.word != "not distinguishable"
    assert 1 <= wrong <= 0.05 * 150 + 3 * math.sqrt(150 * 0.05 * 0.95)


def test_several_challengers_are_judged_together(make_seeds) -> None:
    base = make_seeds("base", [4.20, 4.22, 4.21])
    slight = make_seeds("slight", [4.22, 4.25, 4.249], settings={"optimizer.lr": 2e-3})
    none = make_seeds("none", [4.21, 4.21, 4.21], settings={"optimizer.lr": 3e-3})
    groups = [make_group(n, [load_run(p) for p in g]) for n, g in (("base", base), ("slight", slight), ("none", none))]
    alone = compare(groups[:2], groups[0])[0]
    assert alone.verdict.word == "worse"
    together = compare(groups, groups[0])
    assert [one.verdict.word for one in together] == ["not distinguishable"] * 2
    assert "Holm" in together[0].verdict.text


@pytest.mark.parametrize(
    ("replaced", "said"),
    [
        ({"data": {**DATA, "splits": {"train": {"documents": 1}}}}, "not comparable: data: starter"),
        ({"data": {**DATA, "tokenizer_sha256": "0" * 64, "sources": []}}, "data: different text"),
        ({"budget": 1200.0}, "not comparable: budget: 20 min against 10 min"),
        (
            {"settings": {"objective.shift": True}},
            "not comparable: evaluation: different predicted positions, objective.shift",
        ),
    ],
)
def test_other_rules_are_refused_in_the_table(make_seeds, replaced: dict[str, Any], said: str) -> None:
    found = pair(make_seeds("a", [3.0, 3.1, 3.2], **replaced), make_seeds("b", [4.2, 4.3, 4.4]))
    assert found.verdict.word == "not comparable"
    assert said in row_cells(found.rows[0])[4]
    assert all(row.difference is None for row in found.rows if "loss" in row.measure)
    assert found.times == []
    assert found.rows[-1].difference is not None  # throughput stays comparable


def test_losses_of_other_batch_sizes_of_the_evaluation_are_comparable(make_seeds) -> None:
    groups = [
        make_seeds(name, [4.2, 4.3, 4.4], settings={"eval.batch_size": size}) for name, size in (("a", 8), ("b", 64))
    ]
    assert pair(*groups).rows[0].difference is not None


def test_other_tokenizers_on_the_same_text_are_compared_by_the_character(make_seeds) -> None:
    splits = json.loads(json.dumps(DATA["splits"]))
    splits["validation"]["tokens"] *= 2  # half as many characters in a token
    other = {"data": {**DATA, "tokenizer_sha256": "0" * 64, "splits": splits}}
    found = pair(make_seeds("a", [2.1, 2.2, 2.0], **other), make_seeds("b", [4.2, 4.3, 4.1]))
    final = found.rows[0]
    assert final.unit == "bits per character"
    assert final.b == pytest.approx(4.2 / math.log(2) * 65_536 / 294_000)
    assert final.difference.mean == pytest.approx((2 * 2.1 - 4.2) / math.log(2) * 65_536 / 294_000, abs=1e-9)
    assert found.verdict.word == "not distinguishable"
    busy = make_seeds("busy", [2.1, 2.2, 2.0], others_cpu_share=0.34, **other)
    assert pair(busy, make_seeds("quiet", [4.2, 4.3, 4.1], others_cpu_share=0.01)).verdict.word == "not comparable"


def test_equal_device_hours_are_an_equal_budget(make_seeds) -> None:
    one = make_seeds("one", [4.2, 4.3, 4.4])
    two = make_seeds("two", [4.2, 4.3, 4.4], budget=300.0, world_size=2)
    found = pair(two, one)
    assert found.rows[0].measure == "held-out loss, final, at equal device-hours"
    assert "different numbers of devices: 2 against 1" in found.rules.cautions


def test_a_disturbed_machine_is_named_and_beyond_a_limit_gives_no_verdict(make_seeds) -> None:
    quiet = make_seeds("quiet", [4.2, 4.3, 4.4], others_cpu_share=0.01)
    busy = make_seeds("busy", [4.2, 4.3, 4.4], others_cpu_share=0.11)
    found = pair(busy, quiet)
    said = "other processes took 1.0 % to 11.0 % of the CPU time of a run"
    assert said in found.rules.cautions and found.verdict.word != "not comparable"
    found = pair(make_seeds("busier", [4.2, 4.3, 4.4], others_cpu_share=0.34), quiet)
    assert found.verdict.word == "not comparable"
    assert "wall-clock verdicts are withheld" in row_cells(found.rows[0])[4]
    assert pair(quiet, quiet).rules.cautions == []


def test_runs_that_are_not_from_scratch_are_named(make_seeds) -> None:
    one = make_seeds("one", [4.2, 4.3, 4.4])
    two = make_seeds("two", [4.2, 4.3, 4.4], init_from={"path": "runs/earlier"})
    assert (
        "not all from scratch: the runs start from random weights against runs/earlier" in pair(two, one).rules.cautions
    )
    assert not any("from scratch" in caution for caution in pair(one, one).rules.cautions)


def test_losses_are_read_at_a_common_point(make_seeds) -> None:
    slow, fast = make_seeds("slow", [4.2, 4.2], step_seconds=2.4), make_seeds("fast", [4.2, 4.2])
    runs = [load_run(path) for path in (*slow, *fast)]
    rows = by_measure(pair(slow, fast))
    (tokens,) = [row for name, row in rows.items() if name.startswith("held-out loss in the loop at equal tokens")]
    point = min(run.evaluations("eval/loss")["tokens"][-1] for run in runs)
    read = [np.interp(point, (e := run.evaluations("eval/loss"))["tokens"], e["value"]) for run in runs]
    assert tokens.a == pytest.approx(np.mean(read[:2]))
    assert tokens.b == pytest.approx(np.mean(read[2:]))
    assert rows["throughput"].difference.mean == pytest.approx(
        math.log(rows["throughput"].a / rows["throughput"].b), abs=1e-3
    )


def straight(run: RunData, start: float, slope: float) -> None:
    """Return evaluations on a straight line, every 100 s up to 600 s."""
    run.metrics[:] = [
        {"step": k, "elapsed": 100.0 * k, "tokens": 1000 * k, "eval/loss": start - slope * k} for k in range(1, 7)
    ]


def test_time_to_loss_is_the_share_of_the_others_time(make_seeds) -> None:
    groups = [
        make_group(name, [load_run(path) for path in paths])
        for name, paths in (("a", make_seeds("a", [4.2] * 3, **MUON)), ("b", make_seeds("b", [4.2] * 3)))
    ]
    for group, slope in zip(groups, (1.0, 0.5), strict=True):
        for offset, run in enumerate(group.runs):
            straight(run, 9.0 + 0.1 * offset, slope)
    found = {(t.a, t.axis): t for t in compare(groups, groups[1])[0].times}
    ahead = found["a", "wall-clock"]
    assert (ahead.kind, ahead.reached) == ("held-out", 3)
    assert math.exp(ahead.ratio.mean) == pytest.approx(0.5)  # twice the slope, from the same start
    behind = found["b", "wall-clock"]
    assert (behind.reached, behind.ratio) == (0, None)
    text = console_text(groups, compare(groups, groups[1]))
    assert "a reaches b's last held-out loss in the loop after 50.0 % of b's wall-clock" in text
    assert "b does not reach a's last held-out loss in the loop in 3 of 3 runs (wall-clock)" in text


def test_time_to_loss_with_a_repeated_seed_is_to_the_loss_of_that_seed(make_seeds) -> None:
    losses = {"a": [(1, 8.0), (2, 9.0)], "b": [(1, 8.0), (2, 9.0), (1, 8.2)]}  # seed, loss at the start
    groups = []
    for name, runs in losses.items():
        settings = MUON if name == "a" else {}
        paths = [make_seeds(f"{name}{n}", [4.2], first_seed=seed, **settings)[0] for n, (seed, _) in enumerate(runs)]
        groups.append(make_group(name, [load_run(path) for path in paths]))
        for run, (_, start) in zip(groups[-1].runs, runs, strict=True):
            straight(run, start, 0.5)
    found = {(t.a, t.axis): t for t in compare(groups, groups[1])[0].times}
    ahead = found["a", "wall-clock"]
    assert ahead.reached == 2  # the target of seed 1 is 5.1, the mean of its two runs, and that of seed 2 is 6
    assert math.exp(ahead.ratio.mean) == pytest.approx(math.sqrt(5.8 / 6.0), rel=1e-3)


def test_training_losses_of_other_objectives_are_not_compared(make_seeds) -> None:
    masked = {"settings": {"objective.mlm_probability": 0.4}}
    groups = [group_of(make_seeds("a", [4.2] * 2, **masked)), group_of(make_seeds("b", [4.2] * 2))]
    found = compare(groups, groups[1])[0]
    missing = [row.missing for row in found.rows if row.measure.startswith("training loss")]
    assert missing == ["not comparable: different training objectives"] * 4
    assert found.rows[0].difference is not None
    assert {time.kind for time in found.times} == {"held-out"}
    for run in groups[0].runs:
        run.metrics.clear()  # no evaluations in the loop to compare
    assert compare(groups, groups[1])[0].times == []


def score(mean: float, missing: list[str]) -> dict[str, Any]:
    return {"glue": {"averages": {"nine-number mean": {"mean": mean, "missing": missing}}}}


def test_scores_are_compared_with_the_known_noise(make_seeds) -> None:
    groups = [
        make_group(n, [load_run(p) for p in make_seeds(n, [4.2] * 3, **kw)]) for n, kw in (("a", MUON), ("b", {}))
    ]
    for group, mean in zip(groups, (79.5, 78.9), strict=True):
        for number, run in enumerate(group.runs):
            run.evaluated.update(score(mean + 0.01 * number, []))
    row = compare(groups, groups[1])[0].rows[-1]
    half = 1.96 * 0.7 * math.sqrt(2 / 3)
    assert row.difference.method == "known noise, 0.7 points"  # wider than the spread of the runs
    assert (row.difference.low, row.difference.high) == pytest.approx((0.6 - half, 0.6 + half))
    groups[0].runs[0].evaluated.update(score(79.5, ["mnli"]))
    assert compare(groups, groups[1])[0].rows[-1].missing == "not comparable: different tasks were scored"


def test_scores_of_own_tasks_are_compared_one_by_one(make_seeds) -> None:
    groups = [
        make_group(n, [load_run(p) for p in make_seeds(n, [4.2] * 3, **kw)]) for n, kw in (("a", MUON), ("b", {}))
    ]
    for group, median in zip(groups, (81.0, 80.0), strict=True):
        for number, run in enumerate(group.runs):
            scores = {"title": "mine acc", "median": median + 0.01 * number, "partial": []}
            run.evaluated["own-data"] = {"averages": {}, "numbers": [scores]}
    row = compare(groups, groups[1])[0].rows[-1]
    assert (row.measure, row.unit, row.a, row.b) == ("own-data, mine acc", "points", pytest.approx(81.01), 80.01)
    assert row.difference is not None and row.difference.low is not None and 0.9 < row.difference.low <= 1.0


def test_named_held_out_sets_are_compared_one_by_one(make_seeds) -> None:
    groups = [
        make_group(n, [load_run(p) for p in make_seeds(n, [4.2] * 3, **kw)]) for n, kw in (("a", MUON), ("b", {}))
    ]
    for group, loss in zip(groups, (3.0, 3.5), strict=True):
        for number, run in enumerate(group.runs):
            run.record["metrics"]["held_out"] = {"news": {"loss": loss + 0.01 * number, "accuracy": 0.5}}
    (row,) = [row for row in compare(groups, groups[1])[0].rows if row.measure.startswith("news, held-out loss")]
    assert (row.unit, row.a, row.b) == ("nats", pytest.approx(3.01), pytest.approx(3.51))
    assert row.difference is not None and row.difference.high is not None and row.difference.high < -0.4
    del groups[1].runs[0].record["metrics"]["held_out"]
    (row,) = [row for row in compare(groups, groups[1])[0].rows if row.measure.startswith("news, held-out loss")]
    assert row.difference is None and row.missing


def test_groups_come_from_patterns_and_configurations(make_seeds, tmp_path: Path) -> None:
    for path in [*make_seeds("base", [4.1, 4.2]), *make_seeds("muon", [4.0, 4.1], **MUON)]:
        name = json.loads((path / "record.json").read_text())["run_name"]
        (tmp_path / name).symlink_to(path)
    named = read_groups([f"x={tmp_path}/muon-*", f"y={tmp_path}/base-1", f"y={tmp_path}/base-2"])
    assert [(group.name, len(group.runs)) for group in named] == [("x", 2), ("y", 2)]
    plain = read_groups([str(tmp_path / n) for n in ("base-1", "muon-1", "base-2", "muon-2")])
    assert [(group.name, [run.name for run in group.runs]) for group in plain] == [
        ("base", ["base-1", "base-2"]),
        ("muon", ["muon-1", "muon-2"]),
    ]
    mixed = read_groups([f"all={tmp_path}/*-1"])
    assert mixed[0].notes[0] == "configurations differ within the group: optimizer.name"
    with pytest.raises(CramError, match="matched twice"):
        read_groups([f"x={tmp_path}/base-*", f"y={tmp_path}/base-1"])
    with pytest.raises(CramError, match="no run found"):
        read_groups([str(tmp_path / "nothing")])
    with pytest.raises(CramError, match="only one group, base"):
        choose_baseline(plain[:1], None)
    with pytest.raises(CramError, match="the groups are base, muon"):
        choose_baseline(plain, "lion")
    assert choose_baseline(plain, "muon") is plain[1]


def test_records_of_both_formats_form_one_group(make_seeds) -> None:
    settings = {
        "model.norm_position": "pre",
        "model.ffn": "geglu",
        "train.on_nonfinite": "skip",
        "train.early_stop": None,
    }
    old, new = make_seeds("base", [4.1, 4.2], settings=settings)
    record = json.loads((old / "record.json").read_text())
    config = record["config"]
    config["model"] |= {"norm_place": config["model"].pop("norm_position"), "ffn": "gelu_glu"}
    config["train"] = {"nonfinite": "skip", "kill": None}
    record |= {"format_version": 1, "segments": record.pop("attempts")}
    (old / "record.json").write_text(json.dumps(record))
    (group,) = read_groups([str(old), str(new)])
    assert len(group.runs) == 2 and group.notes == []


def test_unfinished_runs_are_left_out_with_a_note(make_run, make_seeds) -> None:
    paths = [*make_seeds("base", [4.1, 4.2]), make_run("base-3", status="stopped-early", reason="loss 8.1")]
    group = group_of(paths)
    assert len(group.runs) == 2
    assert group.notes[0] == "left out base-3: stopped-early (loss 8.1)"
    with pytest.raises(CramError, match="no finished run"):
        read_groups([f"x={make_run(running=True)}"])


def group_of(paths: list[Path]) -> Group:
    return make_group("g", [load_run(path) for path in paths])


def test_json_has_what_the_text_has(make_seeds) -> None:
    groups = [group_of(make_seeds("a", [4.5, 4.6], **MUON)), group_of(make_seeds("b", [4.2, 4.25]))]
    values = json.loads(json.dumps(as_json(groups, compare(groups, groups[1])), allow_nan=False))
    (only,) = values["comparisons"]
    assert only["rows"][0]["difference"]["mean"] == pytest.approx(0.325)
    assert only["verdict"]["word"] in ("worse", "not distinguishable")


def test_repeats_of_one_seed_do_not_measure_seed_variance(make_seeds) -> None:
    """Three repeats of seed 17 per group differ by machine noise only, so they count as one run."""
    muon = [make_seeds(f"a{loss}", [loss], first_seed=17, **MUON)[0] for loss in (4.100, 4.101, 4.102)]
    base = [make_seeds(f"b{loss}", [loss], first_seed=17)[0] for loss in (4.200, 4.201, 4.202)]
    found = pair(muon, base)
    assert found.verdict.word == "no verdict"
    assert found.rows[0].difference.mean == pytest.approx(-0.1)
    assert any("their mean counts as one run" in note for note in found.challenger.notes)
    assert not any("adjusted" in row.measure for row in found.rows)


def test_repeats_of_one_seed_do_not_narrow_the_known_noise(make_seeds) -> None:
    groups = []
    for name, mean in (("a", 79.5), ("b", 78.0)):
        settings = MUON if name == "a" else {}
        paths = [make_seeds(f"{name}{n}", [4.2], first_seed=1, **settings)[0] for n in range(4)]
        groups.append(make_group(name, [load_run(path) for path in paths]))
        for run in groups[-1].runs:
            run.evaluated.update(score(mean, []))
    row = compare(groups, groups[1])[0].rows[-1]
    half = 1.96 * 0.7 * math.sqrt(2)
    assert (row.difference.low, row.difference.high) == pytest.approx((1.5 - half, 1.5 + half))


def test_the_means_are_those_of_the_difference(make_seeds) -> None:
    """A seed counts once, and a paired difference has only the means of its pairs."""
    repeated = [*make_seeds("a", [4.0, 4.4], **MUON), *make_seeds("again", [4.1], first_seed=2, **MUON)]
    found = pair(repeated, make_seeds("b", [4.5, 4.6, 9.0])).rows[0]
    assert (found.a, found.b) == pytest.approx(((4.0 + 4.25) / 2, 4.55))
    assert found.difference.mean == pytest.approx(found.a - found.b)


def test_scores_without_fine_tuning_are_passed_over(make_seeds) -> None:
    base, other = make_seeds("base", [4.2, 4.3]), make_seeds("muon", [4.1, 4.15], **MUON)
    for path in (*base, *other):
        zero_shot = {"kind": "masked_words", "bits_per_character": 2.0, "notes": []}
        (path / "evaluations.json").write_text(json.dumps({"masked-words": zero_shot}))
    assert not any("masked-words" in row.measure for row in pair(other, base).rows)


def test_scores_of_other_settings_are_not_compared(make_seeds) -> None:
    base, other = make_seeds("base", [4.2, 4.3]), make_seeds("muon", [4.1, 4.15], **MUON)
    for path in (*base, *other):
        notes = ["epochs 2, not 5"] if path in other else []
        (path / "evaluations.json").write_text(json.dumps({"glue": {**score(78.0, [])["glue"], "notes": notes}}))
    row = next(row for row in pair(other, base).rows if row.measure.startswith("glue"))
    assert (
        row.difference is None
        and row.missing == "not comparable: fine-tuned with different settings or numbers of seeds"
    )


def test_other_rows_in_the_loop_leave_the_final_losses_comparable(make_seeds) -> None:
    base, other = make_seeds("base", [4.2, 4.21]), make_seeds("few", [4.3, 4.31], settings={"eval.rows": 99})
    found = pair(other, base)
    assert found.verdict.word == "worse" and found.times == []
    rows = by_measure(found)
    in_loop = [row for name, row in rows.items() if name.startswith("held-out loss in the loop")]
    assert in_loop and all("rows in the loop" in row.missing for row in in_loop)


def test_a_configuration_without_a_finished_run_is_left_out_aloud(make_seeds) -> None:
    broken = make_seeds("broken", [8.0], settings={"optimizer.lr": 0.3}, status="failed")
    groups = read_groups([str(path) for path in (*make_seeds("base", [4.2, 4.21]), *broken)])
    assert [group.name for group in groups] == ["base"]
    assert any("broken" in note and "failed" in note for note in groups[0].notes)


def test_the_first_group_named_is_the_first(make_seeds) -> None:
    base, other = make_seeds("base", [4.2, 4.3]), make_seeds("muon", [4.1, 4.15], **MUON)
    groups = read_groups([*map(str, base), *(f"quick={path}" for path in other)])
    assert [group.name for group in groups] == ["base", "quick"]
