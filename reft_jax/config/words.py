"""Words of messages."""

import difflib


def nearest(name, known) -> str:
    """The question whether a near known name was meant, for messages; "" where none is near."""
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f"did you mean {near[0]!r}? " if near else ""


def listed(names) -> str:
    return ", ".join(map(str, names)) or "none"
