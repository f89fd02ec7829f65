"""Reinforced fine-tuning (ReFT) of language models for reasoning."""

__version__ = "0.1.0"  # setup.py reads it here
