"""Imported by the process that ranks are forked from: DeepSpeed, for the accelerator that they have."""

import os

os.environ["DS_ACCELERATOR"] = "cpu"
os.environ["DEEPSPEED_LOG_LEVEL"] = "error"

import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401  (imports Inductor: two seconds)
