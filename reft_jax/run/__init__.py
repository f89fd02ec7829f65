"""One run's folder: what is in it, what is written there, and how it goes on."""
