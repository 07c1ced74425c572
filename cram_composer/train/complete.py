"""The report and the copy of a finished run, also when they failed before. Imports no heavy library."""

from __future__ import annotations

import sys
from pathlib import Path

from cram_composer.analysis.report.report import write_report
from cram_composer.errors import describe_error
from cram_composer.runs.folder import RunFolder
from cram_composer.runs.mirror import RunMirror


def report_problem(path: Path) -> str | None:
    """Write the report of a run; print and return the cause if that fails, because the results are on disk."""
    try:
        print(f"report: {write_report([path])}")
        return None
    except Exception as error:
        cause = describe_error(error)
        print(f"warning: report: {cause}; run the same command to retry", file=sys.stderr, flush=True)
        return cause


def complete(folder: RunFolder, mirror: RunMirror | None) -> int:
    """Write the report of a finished run if it is missing, and complete its copy; return the exit status."""
    record = folder.read_record()
    if record is None:  # only its copy is complete
        return 0
    missing = record.pop("missing", {})
    if "report" in missing:
        cause = report_problem(folder.path)
        missing = {"report": cause} if cause is not None else {}
    found = record | ({"missing": missing} if "report" in missing else {})
    if found != folder.read_record():
        folder.write_record(found)
    status = mirror.upload_missing() if mirror is not None else 0
    if status and mirror is not None:
        folder.write_record(found | {"missing": missing | {"upload": f"incomplete copy in {mirror.uri}"}})
    return status or int("report" in missing)
