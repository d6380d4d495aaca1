"""Combines a caller's generation config with the model's defaults and its window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modelmill.errors import invalid_field
from modelmill_tasks.shared.generation import DEFAULT_MAX_NEW_TOKENS, GenerationConfig

LIBRARY_TOP_K = 50
"""The default of transformers' ``generate`` for sampling, if the model sets none."""
COOLEST = 1e-6
"""The lowest temperature that is used: the logits divided by it are still finite numbers."""


@dataclass(frozen=True, slots=True)
class DecodingSettings:
    """The settings by which one item's tokens are chosen, with all defaults filled in."""

    samples: bool = False
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    min_new_tokens: int = 0
    max_time: float | None = None
    sequences: int = 1
    beams: int = 1
    repetition_penalty: float = 1.0
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    temperature: float = 1.0
    top_k: int = 0
    """0 means no limit."""
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    first_token: int | None = None
    """The token that the text must begin with, such as the token of a language."""
    last_token: int | None = None
    """The token that a text of ``max_new_tokens`` ends with (BART)."""


@dataclass(frozen=True, slots=True)
class Defaults:
    """A model's own defaults for generation.

    Attributes:
        values: Its ``generation_config.json``, by the library's names. The parameters of a task override it
            (``task_specific_params`` of older configurations).
        counts_prompt: Whether ``max_length`` includes the prompt, as in models that only decode. If so, it
            does not limit the answer and is not used.
    """

    values: Mapping[str, Any]
    counts_prompt: bool

    def over(self, values: Mapping[str, Any]) -> Defaults:
        """These defaults, overridden by ``values``."""
        return Defaults({**self.values, **values}, self.counts_prompt)

    def beams(self, config: GenerationConfig) -> int:
        """The number of beams that ``config`` asks for; 1 means no beam search."""
        return 1 if self._samples(config) else int(config.num_beams or self._get("num_beams", 1))

    def resolve(
        self, config: GenerationConfig, room: int | None, *, one_answer: bool = False
    ) -> DecodingSettings:
        """The settings of one item.

        Args:
            config: The caller's config.
            room: Number of tokens that fit after the prompt; None if the model has no limit.
            one_answer: The task returns one answer, so only one is generated.

        Raises:
            ModelmillError: ``invalid_input``: the caller asks for several answers that would be equal.
        """
        samples, beams = self._samples(config), self.beams(config)
        sequences = config.num_return_sequences or self._get("num_return_sequences", 1)
        if one_answer:
            sequences = 1
        if not samples and sequences > beams:
            message = (
                f"{sequences} answers need sampling or at least {sequences} beams; the request has {beams}"
            )
            raise invalid_field("config.num_return_sequences", message)
        most = config.max_new_tokens or self._max_new_tokens()
        most = most if room is None else min(most, room)
        return DecodingSettings(
            samples=samples,
            max_new_tokens=most,
            min_new_tokens=min(_either(config.min_new_tokens, self._min_new_tokens()), most),
            max_time=config.max_time,
            sequences=sequences,
            beams=beams,
            repetition_penalty=float(
                _either(config.repetition_penalty, self._get("repetition_penalty", 1.0))
            ),
            length_penalty=float(_either(config.length_penalty, self._get("length_penalty", 1.0))),
            early_stopping=self._get("early_stopping", False),
            temperature=max(float(_either(config.temperature, self._get("temperature", 1.0))), COOLEST),
            top_k=int(_either(config.top_k, self._get("top_k", LIBRARY_TOP_K))),
            top_p=float(_either(config.top_p, self._get("top_p", 1.0))),
            seed=config.seed if samples else None,
            stop=tuple(config.stop or ()),
            first_token=self._get("forced_bos_token_id", None),
            last_token=_single(self._get("forced_eos_token_id", None)),
        )

    def _samples(self, config: GenerationConfig) -> bool:
        if config.samples is not None:
            return config.samples
        return bool(self._get("do_sample", False)) and (config.num_beams or 1) == 1

    def _max_new_tokens(self) -> int:
        most = self._get("max_new_tokens", None)
        if most is None and not self.counts_prompt:
            length = self._get("max_length", None)
            # It includes the token that the decoder starts with.
            most = None if length is None else max(1, length - 1)
        return int(most or DEFAULT_MAX_NEW_TOKENS)

    def _min_new_tokens(self) -> int:
        least = self._get("min_new_tokens", None)
        if least is None and not self.counts_prompt:
            least = max(0, self._get("min_length", 0) - 1)
        return int(least or 0)

    def _get(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        return default if value is None else value


def take_defaults(model: Any) -> Defaults:
    """Moves the model's defaults out of its ``generation_config``.

    The library would apply them to all rows of a batch, even if their items ask for something else. Special
    tokens and rules for every text of the model, such as ``no_repeat_ngram_size``, stay there.
    """
    config = model.generation_config
    values = config.to_dict()
    for name in _OURS:
        if hasattr(config, name):
            setattr(config, name, None)
    return Defaults(values, counts_prompt=not model.config.is_encoder_decoder)


_OURS = (
    *("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"),
    *("max_length", "max_new_tokens", "min_length", "min_new_tokens", "max_time", "stop_strings"),
    *("num_beams", "num_return_sequences", "length_penalty", "early_stopping", "repetition_penalty"),
    *("forced_bos_token_id", "forced_eos_token_id"),
)


def check_room(field: str, tokens: int, window: int | None) -> int | None:
    """Number of tokens that fit after a prompt of ``tokens``; None if the model's window has no limit.

    Raises:
        ModelmillError: ``invalid_input``: there is no room for an answer.
    """
    if window is None:
        return None
    if tokens >= window:
        message = (
            f"has {tokens:,} tokens; the model's window is {window:,} and must also hold the answer, "
            "so shorten it"
        )
        raise invalid_field(field, message)
    return window - tokens


def _either(asked: Any, default: Any) -> Any:
    return default if asked is None else asked


def _single(token: Any) -> int | None:
    found: int | None = token[0] if isinstance(token, list) else token
    return found
