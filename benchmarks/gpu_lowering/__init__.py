"""Lowering of a training step's compiled graphs for a GPU, on a machine without one."""
