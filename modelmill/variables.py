"""The names of all ``MODELMILL_*`` variables, and the warning about a name that is none of them."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import SequenceMatcher, get_close_matches

from modelmill.settings import ENV_PREFIX, Settings

OTHERS = {
    "MODELMILL_URL": "For the client and the command line: where the API answers.",
    "MODELMILL_API_KEY": "For the client and the command line: the API key that they send.",
    "MODELMILL_NODE": "Unique name of the node; host and process number when not set.",
    "MODELMILL_DEVICE": "`cpu` or `cuda`; `CUDA_VISIBLE_DEVICES` says which GPU.",
    "MODELMILL_WORKER_MODELS": "Serve only these models, separated by commas.",
    "MODELMILL_WORKER_TASKS": "Serve only these tasks, separated by commas.",
    "MODELMILL_PRELOAD": "Models to load at start, separated by commas.",
    "MODELMILL_STATE_DIR": "The folder that the processes of a node share. Each node makes its own.",
    "MODELMILL_REDIS_PASSWORD": "For `docker-compose.yml`: the password of its Redis.",
    "MODELMILL_REDIS_MAXMEMORY": "For `docker-compose.yml`: the memory that its Redis may take; "
    "4gb when not set.",
    "MODELMILL_MODELS_DIR": "For `docker-compose.yml`: the folder with your models.",
    "MODELMILL_PUBLISH": "For `docker-compose.yml`: the address and port that it publishes.",
}
"""The variables that are no settings, with what they mean."""
FREE = ("MODELMILL_PLUGIN_", "MODELMILL_TEST_")
"""Names that begin so are never warned about: they belong to plugins and to tests."""
CHECKED = "MODELMILL_START_CHECKED"
"""Set once a process has warned, so that the processes that it starts do not say the same again."""
PREFIX_LIKENESS = 0.8


def known_names() -> set[str]:
    """The names of all variables that this project reads."""
    return {ENV_PREFIX + name.upper() for name in Settings.model_fields} | OTHERS.keys() | {CHECKED}


def unknown_names(environ: Mapping[str, str]) -> list[str]:
    """A sentence for each variable that looks like one of this project's, and has no effect."""
    known = known_names()
    found = []
    for name in sorted(environ):
        if name.startswith(ENV_PREFIX):
            if name not in known and not name.startswith(FREE):
                endings = [each.removeprefix(ENV_PREFIX) for each in known - {CHECKED}]
                near = get_close_matches(name.removeprefix(ENV_PREFIX).upper(), endings, n=1)
                found.append(_sentence(name, ENV_PREFIX + near[0] if near else None))
        elif (meant := _with_wrong_prefix(name, known)) is not None:
            found.append(_sentence(name, meant))
    return found


def _with_wrong_prefix(name: str, known: set[str]) -> str | None:
    capitals = name.upper()
    # Cheap: an environment may hold hundreds of names.
    if capitals[:1] != "M" or "MIL" not in capitals:
        return None
    for meant in known:
        ending = meant.removeprefix(ENV_PREFIX.rstrip("_"))
        prefix = capitals.removesuffix(ending)
        if prefix != capitals and SequenceMatcher(None, prefix, "MODELMILL").ratio() >= PREFIX_LIKENESS:
            return meant
    return None


def _sentence(name: str, meant: str | None) -> str:
    hint = f"Did you mean {meant}?" if meant else "docs/settings.md lists those that have one."
    return f"The variable {name} has no effect. {hint}"
