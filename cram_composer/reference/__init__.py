"""Documentation generated from the schema and the recipes: the key reference, the recipe page, JSON Schemas."""
