"""Updates, and the loops around them."""
