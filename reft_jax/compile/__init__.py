"""The functions of a run, compiled for devices that are not here."""
