"""ddchallenge: ten minutes of any image generator, scored as a training set.

What the author of a submission imports::

    from ddchallenge import GenerationTask

    class MyGenerator:
        def setup(self, task: GenerationTask) -> None: ...
        def generate(self, labels, seed): ...  # uint8 N×3×H×W
"""

__version__ = "0.1.0"

from ddchallenge.errors import DDChallengeError
from ddchallenge.records import DatasetSpec, GenerationTask, LabeledImages

__all__ = [
    "DDChallengeError",
    "DatasetSpec",
    "GenerationTask",
    "LabeledImages",
    "__version__",
]
