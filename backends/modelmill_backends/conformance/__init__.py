"""The checks that every runner must pass, the built-in runners and those of plugins.

The checks prove a runner on a specimen: a small model with inputs and, if possible, an independent way to
compute the expected answers. ``modelmill check PACKAGE`` runs the checks for a package that names its
specimens in the entry point group ``modelmill.specimens``.
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
