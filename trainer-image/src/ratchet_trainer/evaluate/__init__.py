"""The evaluate stage: candidate and champion answer the same cases."""
