"""Is a bundle what its generator makes? Some of its recorded batches are generated again.

The very supervisor that samples asks for them, so a stranger's generator stays in its box. Images
are compared with the bundle's one by one, augmented copies with what :mod:`ddchallenge.augment`
makes of the bundle's own images. Other devices round differently, so images may differ within a
tolerance that is stated; copies must be identical. ``recorded`` says what can be asked for,
``comparing`` asks and compares.
"""
