"""CramBERT, the project's own encoder; these files travel with exported models."""
