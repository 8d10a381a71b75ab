"""Answers from a model on this machine, the same way for evaluation and serving."""
