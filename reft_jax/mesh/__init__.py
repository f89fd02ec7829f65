"""Devices and processes: where arrays lie, and what processes agree on."""
