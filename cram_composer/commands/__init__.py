"""The subcommands of `cram`, by what they are about; each module adds its own to the parser, and imports torch late."""
