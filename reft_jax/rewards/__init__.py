"""From a response's text to a reward: answers, sandboxed programs, grades, estimates. Strings only, no jax."""
