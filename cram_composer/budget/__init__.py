"""The wall-clock budget: its clock and ledger, schedules as functions of progress, and the callback that stops."""
