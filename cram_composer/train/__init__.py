"""The training run: launch, build, loop, callbacks, checkpointing, finish, export."""
