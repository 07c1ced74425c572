"""The subcommands of `cram`, one module each: `add` registers its arguments, `run` returns the exit status."""
