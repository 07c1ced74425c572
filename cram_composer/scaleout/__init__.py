"""How several devices train one model: DDP, FSDP2 and DeepSpeed's ZeRO, each a strategy that training asks."""
