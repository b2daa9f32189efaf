"""Pictures as the visual tokens that remain after pruning, for servers that run only the language model."""
