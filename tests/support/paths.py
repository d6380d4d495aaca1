"""Where the repository and the models of the tests are."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).parent.parent.parent
TEST_MODELS = REPOSITORY / "tests" / "fixtures" / "models.toml"
NOOP_MODELS = REPOSITORY / "benchmarks" / "models.toml"
