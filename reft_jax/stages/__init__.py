"""The stages of a run, one `run(name, stage, run)` each; the loop body reads like the algorithm."""
