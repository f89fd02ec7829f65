"""Settings as frozen records that say what is legal."""
