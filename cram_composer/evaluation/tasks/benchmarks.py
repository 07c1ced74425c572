"""The tasks of a protocol by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from cram_composer.config.schema.evaluation import FineTuningProtocol, OwnDataConfig
from cram_composer.errors import CramError
from cram_composer.evaluation.tasks.glue import GLUE
from cram_composer.evaluation.tasks.own_data import own_task
from cram_composer.evaluation.tasks.similarity import SIMILARITY
from cram_composer.evaluation.tasks.superglue import SUPERGLUE
from cram_composer.evaluation.tasks.task import Task

BENCHMARKS: dict[str, dict[str, Task]] = {"glue": GLUE, "superglue": SUPERGLUE, "similarity": SIMILARITY}


def tasks_of(protocol: FineTuningProtocol) -> Mapping[str, Task]:
    """Return the tasks that a protocol chooses from. Raises CramError if a file of a user's own task is invalid."""
    if isinstance(protocol, OwnDataConfig):
        return {
            name: own_task(name, files.model_dump_json(exclude_unset=True)) for name, files in protocol.tasks.items()
        }
    return BENCHMARKS[protocol.benchmark]


def find_task(name: str, asked_by: str, tasks: Mapping[str, Task] = GLUE) -> Task:
    """Find a task among `tasks`; `asked_by` names the option in the error message. Raises CramError."""
    if name not in tasks:
        nearest = difflib.get_close_matches(name, tasks, n=1, cutoff=0.0)[0]
        raise CramError(f"{asked_by}: must be one of {', '.join(tasks)}, got '{name}'; did you mean '{nearest}'?")
    return tasks[name]
