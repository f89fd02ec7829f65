"""Records, and how they become prompts, tokens and batches. Host side: nothing here needs jax."""
