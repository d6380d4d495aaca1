"""``modelmill check``: the conformance suite, for the specimens of one installed distribution."""

from __future__ import annotations

import logging
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import (
    Distribution,
    EntryPoint,
    PackageNotFoundError,
    distribution,
    packages_distributions,
)
from pathlib import Path

from rich.table import Table
from rich.text import Text

from modelmill.errors import ConfigError
from modelmill_backends import registry
from modelmill_backends.conformance import CHECKS, ENTRY_POINT_GROUP, LoadedSpecimen, SkippedError, Specimen
from modelmill_cli.console import err, make_table, out

COLOURS = {"passed": "green", "failed": "red", "skipped": "yellow"}


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check on one specimen."""

    specimen: Specimen
    check: str
    verdict: str
    """``passed``, ``failed`` or ``skipped``."""
    why: str = ""
    trace: str = ""


def check_package(name: str, *, with_traceback: bool = False) -> int:
    """Runs all checks on all specimens of a distribution and prints the findings.

    Returns:
        The exit status: 1 if a check failed.

    Raises:
        ConfigError: the distribution is not installed, has no specimens, or they cannot be imported.
    """
    package = _distribution(name)
    specimens = _specimens(package)
    if not with_traceback:
        # The loader logs a traceback for each error that it raises as a sentence.
        logging.disable(logging.ERROR)
    findings: list[Finding] = []
    asked: set[registry.RunnerClass] = set()
    for specimen in specimens:
        with tempfile.TemporaryDirectory(prefix="modelmill-check-") as folder:
            loaded = LoadedSpecimen(specimen, Path(folder))
            findings += _findings(loaded)
            with suppress(Exception):
                asked.add(registry.find_runner(loaded.entry, specimen.task))
            loaded.close()
    out.print(_table(findings))
    if with_traceback:
        for finding in findings:
            err.print(finding.trace, soft_wrap=True, end="")
    failed = sum(finding.verdict == "failed" for finding in findings)
    passed = sum(finding.verdict == "passed" for finding in findings)
    out.say(
        f"{package.name} {package.version}, {len(specimens)} specimens: "
        f"{passed} checks passed, {failed} failed."
    )
    for runner in _runners(package):
        if runner not in asked:
            err.say(
                ("warning", "yellow"),
                f": no specimen proves {runner.__module__}:{runner.__name__} "
                f"(backend {runner.backend}, task {runner.task}).",
            )
    return int(failed > 0)


def _findings(loaded: LoadedSpecimen) -> Iterator[Finding]:
    try:
        assert loaded.model
    except Exception as error:
        # The model does not load, so every check would fail with this error.
        yield _failed(loaded.specimen, "the model loads", error)
        return
    for check in CHECKS:
        name = check.__name__.replace("_", " ")
        try:
            check(loaded)
        except SkippedError as reason:
            yield Finding(loaded.specimen, name, "skipped", str(reason))
        except Exception as error:
            yield _failed(loaded.specimen, name, error)
        else:
            yield Finding(loaded.specimen, name, "passed")


def _failed(specimen: Specimen, check: str, error: Exception) -> Finding:
    kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
    return Finding(specimen, check, "failed", f"{kind}{error}", "".join(traceback.format_exception(error)))


def _table(findings: Sequence[Finding]) -> Table:
    table = make_table("Specimen", "Task", "Check", "Verdict")
    last = None
    for finding in findings:
        if last is not None and finding.specimen is not last:
            table.add_section()
        verdict = Text(finding.verdict, COLOURS[finding.verdict])
        if finding.why:
            verdict = Text.assemble(verdict, f": {finding.why}")
        table.add_row(finding.specimen.name, finding.specimen.task, finding.check, verdict)
        last = finding.specimen
    return table


def _distribution(name: str) -> Distribution:
    try:
        return distribution(name)
    except (PackageNotFoundError, ValueError):
        pass
    # The user may have given the import name, which can differ from the distribution's name.
    owners = set(packages_distributions().get(name, ()))
    if len(owners) == 1:
        return distribution(owners.pop())
    raise ConfigError(f"No package {name!r} is installed here. Install it first: pip install -e FOLDER")


def _points(package: Distribution, group: str) -> list[EntryPoint]:
    return sorted(package.entry_points.select(group=group))


def _specimens(package: Distribution) -> list[Specimen]:
    found: list[Specimen] = []
    for point in _points(package, ENTRY_POINT_GROUP):
        try:
            named = point.load()
        except Exception as error:
            raise _broken(point, error) from error
        if not isinstance(named, Sequence) or not all(isinstance(each, Specimen) for each in named):
            raise ConfigError(f"The entry point {point.name!r} ({point.value}) is not a list of Specimen.")
        found += named
    if not found:
        raise ConfigError(
            f"{package.name} has no specimens, so its runners cannot be checked. Write a list of "
            "modelmill_backends.conformance.Specimen and name it by an entry point in the group "
            f"{ENTRY_POINT_GROUP}; docs/plugins.md shows how."
        )
    return found


def _runners(package: Distribution) -> list[registry.RunnerClass]:
    found: list[registry.RunnerClass] = []
    for point in _points(package, registry.ENTRY_POINT_GROUP):
        try:
            found += registry.runners_named_by([point])
        except Exception as error:
            raise _broken(point, error) from error
    return found


def _broken(point: EntryPoint, error: Exception) -> ConfigError:
    return ConfigError(
        f"The entry point {point.name!r} ({point.value}) cannot be imported: {type(error).__name__}: {error}"
    )
