"""Learning rates over a run: one file each.

A file defines `Schedule`, a frozen record whose call is (lr, num_updates) -> function of the update's count (i32[], from 0), the rate f32[].
Fractions are of the run (`optim.schedule_epochs`, or the stage's epochs), and `final` is a share of lr.
"""
