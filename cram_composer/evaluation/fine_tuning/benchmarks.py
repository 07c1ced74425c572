"""The benchmarks and their tasks by name."""

from __future__ import annotations

import difflib

from cram_composer.errors import CramError
from cram_composer.evaluation.fine_tuning.superglue import SUPERGLUE
from cram_composer.evaluation.fine_tuning.tasks import GLUE, Task

BENCHMARKS: dict[str, dict[str, Task]] = {"glue": GLUE, "superglue": SUPERGLUE}


def find_task(name: str, asked_by: str, benchmark: str = "glue") -> Task:
    """Find a task of a benchmark; `asked_by` names the option in the error message. Raises CramError."""
    tasks = BENCHMARKS[benchmark]
    if name not in tasks:
        nearest = difflib.get_close_matches(name, tasks, n=1, cutoff=0.0)[0]
        raise CramError(f"{asked_by}: must be one of {', '.join(tasks)}, got '{name}'; did you mean '{nearest}'?")
    return tasks[name]
