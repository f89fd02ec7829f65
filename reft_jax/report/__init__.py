"""report.html and plots/ of one workdir, or of several side by side: `build` makes them, at the end of a run and on demand.

Only what the stages wrote is read, so it can be done at any time, also while a run is under way. The page holds all it
needs: it opens from disk, without a network.
"""


def build(workdirs, output=None, *, watch: float = 0) -> list:
    """Writes the report of these workdirs to `output` (default: report.html in the first), draws the plots of each, and
    returns the paths of what was written. `watch`: seconds after which the page offers to be loaded again (0 = never).

    Raises InputError if a workdir is not a directory or nothing in any of them can be read.
    """
    from reft_jax.report import write  # with what draws: a help page and the samples do without

    return write.build(workdirs, output, watch=watch)
