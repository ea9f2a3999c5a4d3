"""ddchallenge: ten minutes of any image generator, scored as a training set."""

__version__ = "0.1.0"
