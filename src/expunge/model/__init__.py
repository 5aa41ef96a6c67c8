"""Any Hugging Face causal LM: loading, its head, its adapter, its log-probabilities and the untouched reference."""
