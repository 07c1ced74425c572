"""The masking rate over the budget."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from composer.core import Event

from cram_composer.algorithms.masking_schedule import MASK_SCHEDULES, MaskingSchedule
from cram_composer.budget.budget import Budget, Limits
from cram_composer.config.schema.introspect import literals
from cram_composer.config.schema.objective import MaskedLMConfig
from cram_composer.data.masking import build_collator


def rates(objective: MaskedLMConfig, *seconds: float) -> list[float]:
    """Return the rates after the given seconds of a hundred."""
    first = build_collator(objective, 1000, (0, 1, 2, 3, 4), 4)
    budget, loader = Budget(Limits(seconds=100.0)), SimpleNamespace(mlm_probability=None, collator=first)
    schedule = MaskingSchedule(objective, budget, loader)
    found = []
    for elapsed in seconds:
        budget.advance(elapsed, 0, 0)
        assert schedule.match(Event.BEFORE_DATALOADER, None)
        schedule.apply(Event.BEFORE_DATALOADER, None, None)
        found.append(loader.mlm_probability)
    return found


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("linear", [0.3, 0.2625, 0.225, 0.1875, 0.15]),
        ("cosine", [0.3, 0.225 + 0.075 * 0.5**0.5, 0.225, 0.225 - 0.075 * 0.5**0.5, 0.15]),
        ("step", [0.3, 0.3, 0.15, 0.15, 0.15]),
    ],
)
def test_every_form_moves_from_the_initial_to_the_final_rate(name: str, expected: list[float]):
    objective = MaskedLMConfig(mlm_probability=0.3, final_mlm_probability=0.15, mask_schedule=name)
    assert rates(objective, 0, 25, 50, 75, 100) == pytest.approx(expected)
    assert rates(objective, 120)[0] == 0.15  # no overshoot after a long last step
    rising = MaskedLMConfig(mlm_probability=0.15, final_mlm_probability=0.3, mask_schedule=name)
    assert max(rates(rising, *range(0, 101, 5))) == 0.3  # the capacity of the collator


def test_a_step_is_taken_at_the_switch_with_a_collator_of_its_own():
    objective = MaskedLMConfig(
        mlm_probability=0.4, final_mlm_probability=0.2, mask_schedule="step", final_masking="all-mask", switch=0.7
    )
    budget = Budget(Limits(seconds=100.0))
    loader = SimpleNamespace(collator=build_collator(objective, 1000, (0, 1, 2, 3, 4), 4))
    schedule, found = MaskingSchedule(objective, budget, loader), []
    for elapsed in (0, 69, 71, 100):
        budget.advance(elapsed, 0, 0)
        schedule.apply(Event.BEFORE_DATALOADER, None, None)
        found.append((loader.mlm_probability, loader.collator.scheme, loader.collator.capacity(100)))
    assert found == [(0.4, "80-10-10", 40)] * 2 + [(0.2, "all-mask", 20)] * 2


def test_without_a_final_rate_nothing_changes():
    assert rates(MaskedLMConfig(mlm_probability=0.3), 0, 40, 100) == [0.3] * 3


def test_the_schema_and_the_table_name_the_same_forms():
    assert set(literals(MaskedLMConfig.model_fields["mask_schedule"].annotation)) == set(MASK_SCHEDULES)
