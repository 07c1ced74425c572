"""Evaluation without fine-tuning: minimal pairs and masked words."""
