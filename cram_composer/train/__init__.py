"""A training run: launch, build, loop, callbacks, checkpointing, finish, export."""
