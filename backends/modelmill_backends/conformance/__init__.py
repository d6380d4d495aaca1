"""The suite that every runner passes, this project's own and those of plugins.

A runner is proved on a specimen: a small model, made on the spot, and an independent path to its answers.
``modelmill check PACKAGE`` runs the suite for a package that names its specimens in the entry point group
``modelmill.specimens``.
"""

from modelmill_backends.conformance.checks import CHECKS, LoadedSpecimen, SkippedError
from modelmill_backends.conformance.compare import difference
from modelmill_backends.conformance.samples import samples_of
from modelmill_backends.conformance.specimen import ENTRY_POINT_GROUP, Specimen

__all__ = [
    "CHECKS",
    "ENTRY_POINT_GROUP",
    "LoadedSpecimen",
    "SkippedError",
    "Specimen",
    "difference",
    "samples_of",
]
