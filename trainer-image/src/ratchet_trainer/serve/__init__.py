"""The transformers runtime: one model behind the OpenAI API."""
