"""From files to batches: examples, their tokens, and which of them go into which step."""
