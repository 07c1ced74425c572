"""The whole examination of a machine for a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from cram_composer.budget.schedules import build_schedule
from cram_composer.config import compose
from cram_composer.config.schema.run import RunConfig
from cram_composer.config.validation.run import check_run
from cram_composer.device import choose_device
from cram_composer.doctor.checks import Check, CheckContext, CheckGroup, run_checks
from cram_composer.doctor.link import check_link
from cram_composer.doctor.machine import check_machine
from cram_composer.doctor.numerics import check_numerics
from cram_composer.doctor.precision import check_rates
from cram_composer.doctor.resume import check_resume
from cram_composer.doctor.training import check_training
from cram_composer.planning.microbatch import find_largest, with_microbatch
from cram_composer.planning.run_spec import RunSpec, read_data_facts

_GROUPS: dict[str, CheckGroup] = {
    "machine": check_machine,
    "rates": check_rates,
    "numerics": check_numerics,
    "training": check_training,
    "resume": check_resume,
}


def run_doctor(yaml: Path, overrides: list[str], processes: int, report: Callable[[Check], None]) -> list[Check]:
    """Examine this machine for a run; `report` gets each check when it is done.

    Args:
        yaml: YAML of the run, with `overrides` of its values.
        processes: number of devices; with more than one, the link between them is measured too.
        report: called with each check.

    Raises:
        CramError: the configuration is invalid, or its device is not there.
    """
    composed = compose(RunConfig, yaml, overrides)
    config: RunConfig = composed.config
    check_run(config, processes)
    build_schedule(config.schedule)
    device = choose_device(config, processes)
    facts = read_data_facts(config.data)
    automatic = config.train.device_train_microbatch_size == "auto"
    spec = RunSpec(with_microbatch(config, 1) if automatic else config, facts, processes)
    context = CheckContext(yaml, overrides, composed, device, spec, processes)
    groups = dict(_GROUPS)
    if automatic:

        def check_microbatch(context: CheckContext) -> Iterator[Check]:
            found = find_largest(config, processes)
            context.spec = RunSpec(with_microbatch(config, found.rows), facts, processes)
            how = "used" if found.measured else "used by estimate"
            values = {"rows": found.rows, "memory_share": found.memory_share, "measured": found.measured}
            yield Check(
                "microbatch", "pass", f"{found.rows} rows, {found.memory_share:.0%} of the memory {how}", values
            )

        groups = {"machine": check_machine, "microbatch": check_microbatch, **groups}
    if processes > 1:
        groups["link"] = check_link
    return run_checks(context, groups, report)
