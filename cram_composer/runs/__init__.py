"""The run folder on disk and what is derived from it: records, branches, reproductions, mirrors."""
