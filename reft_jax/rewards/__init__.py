"""From a response's text to a reward: answers, sandboxed programs, grades, terms, estimates. No jax."""
