"""The export stage: base and adapter as one model, in the formats of other runtimes."""
