"""Tasks to fine-tune on: benchmarks and a user's own data, their files and rows."""
