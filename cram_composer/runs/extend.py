"""`cram extend`: train a finished run further, as a new run from its weights with a learning rate that warms up again.

Ibrahim et al. 2024, arXiv 2403.08763, section 6: warm up the rate again, then decay it again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from pydantic import ValidationError

from cram_composer.config.layers import flatten, parse_override, spell_out, unflatten
from cram_composer.config.schema.run import BudgetConfig, SeedsConfig
from cram_composer.config.validation.run import check_run
from cram_composer.errors import CramError
from cram_composer.runs.derived import DerivedRun, unused_folder
from cram_composer.runs.folder import FINISHED
from cram_composer.runs.reproduce import read_reproducible_record, recompose
from cram_composer.storage.files import write_atomic

_YAML = "extend.yaml"
_WARMUP = 0.02  # share of the budget, for a schedule without a warmup
_ONLY_AT_FIRST = ("algorithms.batch_size_ramp", "algorithms.seq_length_warmup")  # made for random weights


def create_extension(run: Path, budget: str, *, name: str | None = None) -> DerivedRun:
    """Create the folder of a run that starts from the weights of `run`.

    It has the configuration of `run`, but another order of rows, no batch ramp and no sequence-length warmup.

    Args:
        run: folder of a finished run.
        budget: budget of the new run alone, such as 36h or {tokens: 1e9}.
        name: name of the new run; default: RUN-extended.

    Raises:
        CramError: a run that has not finished, a folder that exists, or an invalid budget.
    """
    record = read_reproducible_record(run)
    if record["status"] not in FINISHED:
        raise CramError(
            f"{run}: has not finished (status {record['status']}); resume it with the command that began it"
        )
    path = unused_folder(run, name or f"{run.name}-extended", _YAML)
    wanted = flatten(record["config"])
    wanted |= {
        "run_name": path.name,
        "runs_dir": str(path.parent.resolve()),
        "init_from": str(run.resolve()),
        "seed": (record["config"]["seed"] + 1) % 2**32,
        **{f"seeds.{part}": None for part in SeedsConfig.model_fields},  # other rows and masks than the first time
        "checkpoint.branch_at": [],
    }
    wanted |= {f"budget.{key}": value for key, value in _limits(budget).items()}
    if wanted.get("schedule.warmup") == 0.0:
        wanted["schedule.warmup"] = _WARMUP
    for section in _ONLY_AT_FIRST:
        wanted = {key: value for key, value in wanted.items() if not key.startswith(f"{section}.")} | {section: None}
    values, composed = recompose(wanted, record["provenance"])
    check_run(composed.config, record["world_size"])
    path.mkdir(parents=True)
    write_atomic(path / _YAML, OmegaConf.to_yaml(OmegaConf.create(unflatten(values))))
    return DerivedRun(path / _YAML, composed, record["world_size"], f"the weights of {run}")


def _limits(budget: str) -> dict[str, Any]:
    """Return every limit of the new budget, None where it has none. Raises CramError."""
    values = spell_out(dict([parse_override(f"budget={budget}")]))["budget"]
    try:
        limits = BudgetConfig.model_validate(values).model_dump()
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "budget"
        raise CramError(f"--budget {budget}: {where}: {problem['msg'].removeprefix('Value error, ')}") from None
    if not any(limits.values()):
        raise CramError(f"--budget {budget}: sets no limit; give a time such as 36h, or {{tokens: 1e9}}")
    return limits
