"""The wall-clock budget: ledger, schedules as functions of progress, and the callback that stops the run."""
