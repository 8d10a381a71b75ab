"""The train stage: a dataset becomes a LoRA adapter."""
