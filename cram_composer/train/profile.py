"""A torch profiler trace of training steps after the loop, so that the budget and the weights stay as they are."""

from __future__ import annotations

import torch
from composer.utils import dist
from torch.profiler import ProfilerActivity, profile

from cram_composer.storage.files import naming_full_disk, write_atomic
from cram_composer.train.session import Session

PROFILE_FOLDER = "profile"
_SHOWN = 15  # operators on the console
_ROWS = 100  # operators in summary.txt


def profile_steps(session: Session, steps: int) -> None:
    """Train `steps` further steps under torch's profiler, after everything of the run is written.

    Writes `profile/trace.json`, for https://ui.perfetto.dev, and `profile/summary.txt`, the operators by their own
    time. Every rank trains; rank 0 writes.
    """
    trainer, folder = session.trainer, session.folder.path / PROFILE_FOLDER
    trainer.state.callbacks = []  # those of the run have ended: budget, trace, checkpoints, loggers
    trainer.logger.destinations = ()
    trainer.engine._is_closed = False  # closed to flush the loggers; Composer has no way back
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        trainer.fit(duration=f"{steps}ba")
    if dist.get_global_rank() != 0:
        return
    sort_by = "self_cuda_time_total" if len(activities) > 1 else "self_cpu_time_total"
    averages = profiler.key_averages()
    with naming_full_disk(folder):
        folder.mkdir(exist_ok=True)
        profiler.export_chrome_trace(str(folder / "trace.json"))
        write_atomic(folder / "summary.txt", averages.table(sort_by=sort_by, row_limit=_ROWS, max_name_column_width=60))
    print(averages.table(sort_by=sort_by, row_limit=_SHOWN, max_name_column_width=40))
    print(f"profile: {folder} ({steps} steps after the end of the budget)")
