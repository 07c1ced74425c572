"""Strategies to train one model on several devices: DDP, FSDP2 and DeepSpeed's ZeRO."""
