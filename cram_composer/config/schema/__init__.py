"""The schema: one class per thing that can be configured, with types, ranges, defaults and meaning."""
