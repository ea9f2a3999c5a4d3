"""Submissions as one file: what an entrant hands in, and what an organiser takes.

``form`` is what both sides agree on, ``pack`` writes, ``check`` validates and unpacks, ``privacy``
looks for what nobody means to hand in. Nothing of a submission is executed on either side.
"""

from ddchallenge.packages.check import CheckedPackage, check_package, unpack
from ddchallenge.packages.form import PackagedFile, PackageList
from ddchallenge.packages.pack import WrittenPackage, write_package

__all__ = [
    "CheckedPackage",
    "PackageList",
    "PackagedFile",
    "WrittenPackage",
    "check_package",
    "unpack",
    "write_package",
]
