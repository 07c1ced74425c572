"""Results of checks, their order, and their text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from cram_composer.config import Composed
from cram_composer.config.schema.run import RunConfig
from cram_composer.device import DeviceChoice
from cram_composer.errors import CramError, describe_error
from cram_composer.planning.run_spec import RunSpec

Status = Literal["pass", "warn", "fail", "skip"]


@dataclass(frozen=True)
class Check:
    """The result of one check: a line for people, and `values` for programs, in base units."""

    name: str
    status: Status
    line: str
    values: dict[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """Format the check as a line."""
        return f"{self.status.upper():<4}  {self.name:<15} {self.line}"


@dataclass
class CheckContext:
    """The run and the machine that are checked, with what earlier checks found out.

    Attributes:
        yaml, overrides: as given on the command line.
        spec: the run with a number of rows per microbatch.
        findings: values of earlier checks by name.
    """

    yaml: Path
    overrides: list[str]
    composed: Composed
    device: DeviceChoice
    spec: RunSpec
    processes: int
    findings: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def config(self) -> RunConfig:
        """The configuration, with a number of rows per microbatch."""
        return self.spec.config


CheckGroup = Callable[[CheckContext], Iterator[Check]]


def run_checks(context: CheckContext, groups: dict[str, CheckGroup], report: Callable[[Check], None]) -> list[Check]:
    """Carry out the groups in order; one that raises an error is a failed check of its name."""
    checks: list[Check] = []
    for name, group in groups.items():
        try:
            for check in group(context):
                checks.append(check)
                context.findings[check.name] = check.values
                report(check)
        except Exception as error:
            line = str(error) if isinstance(error, CramError) else describe_error(error)
            checks.append(Check(name, "fail", line.splitlines()[0]))
            report(checks[-1])
    return checks


def checks_as_json(checks: list[Check]) -> dict[str, Any]:
    """Return the values that `--json` prints."""
    return {
        "format_version": 1,
        "failed": sum(c.status == "fail" for c in checks),
        "checks": [asdict(c) for c in checks],
    }
