"""Generates texts: one loop for all runners that generate, for items with any settings."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from modelmill_backends.progress import ProgressSink
from modelmill_backends.shared.literal import Marks
from modelmill_backends.shared.losses import warn_of, warn_unknown
from modelmill_backends.shared.sentences import NO_LIMIT
from modelmill_backends.transformers.characters import Characters
from modelmill_backends.transformers.decoding import DecodingSettings, Defaults, take_defaults
from modelmill_backends.transformers.sampling import Chooser
from modelmill_backends.transformers.stopping import BeamWatch, Row, Watch, continuation, cut
from modelmill_backends.transformers.texts import read_text
from modelmill_backends.transformers.weights import Loaded
from modelmill_tasks.shared.generation import FinishReason

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CONTEXT = 8
"""The last tokens of the prompt, which decide how the first new token is written, such as its space."""
ONE_ITEM_TOKENS = 2048
"""So many tokens count as one item of a batch's capacity."""

Inputs = Callable[[Sequence[int]], dict[str, Any]]
"""Positions of items in the batch, with repetitions → the model's inputs, one row for each."""


@dataclass(slots=True)
class Generative:
    """A loaded model that generates, with everything that its runners share.

    Attributes:
        loaded: The model.
        decoder: The object with ``generate``: the model, or a part of it.
        defaults: The model's own defaults for generation.
        eos: Tokens that end a text.
        pad: The token that fills up shorter rows.
        window: Number of tokens that the decoder can hold, prompt included; None if there is no limit.
        special: The tokenizer's special tokens, by their text.
        processor: Prepares images and text in one call, if the model has one.
        marks: Protects messages inside of a chat template; None if the model has no template.
    """

    loaded: Loaded
    decoder: Any
    defaults: Defaults
    eos: tuple[int, ...]
    pad: int
    window: int | None
    special: dict[str, int]
    processor: Any = None
    marks: Marks | None = None
    characters: Characters = field(init=False)

    def __post_init__(self) -> None:
        self.characters = Characters(self.loaded.tokenizer)

    @property
    def tokenizer(self) -> Any:
        return self.loaded.tokenizer

    def encode(self, text: str, **options: Any) -> list[int]:
        """Token ids, not cut off at the window unless ``options`` say so. Control tokens are text."""
        with self.loaded.tokenizing:
            found: list[int] = self.tokenizer(text, verbose=False, **options)["input_ids"]
        return found

    def read(self, text: str, most: int, field: str = "text", source: str | None = None) -> list[int]:
        """Token ids, cut off at ``most``. Warns the caller of what the model does not read of the text.

        Args:
            text: The text.
            most: Number of tokens that the model reads.
            field: The request's field that the text comes from.
            source: Code of the text's language, for a tokenizer that marks it.
        """
        with self.loaded.tokenizing:
            if source is not None:
                # Another thread may set another language: the lock covers both lines.
                self.tokenizer.src_lang = source
            encoded = self.tokenizer(text, truncation=True, max_length=most, verbose=False)
        read = read_text(self.loaded, encoded, text)
        warn_of(read, field)
        return list(read.ids)

    def warn_of_unknown(self, ids: Sequence[int], field: str) -> None:
        """Warns the caller if the model does not know a noteworthy part of the text of these tokens."""
        unknown = self.tokenizer.unk_token_id
        warn_unknown(field, 0 if unknown in self.eos else ids.count(unknown), len(ids))

    def decode(self, tokens: Sequence[int], *, whole: bool = False) -> str:
        """Text, without special tokens; as ``Characters.decode``."""
        with self.loaded.tokenizing:
            return self.characters.decode(tokens, whole=whole)

    def close(self) -> None:
        self.decoder = self.processor = None
        self.loaded.close()


def generative(
    loaded: Loaded, decoder: Any = None, eos: int | None = None, template: Any = None
) -> Generative:
    """Prepares a model for ``generate``; its own defaults move into ``Generative.defaults``.

    Args:
        loaded: The model, with its tokenizer.
        decoder: The object with ``generate``, if it is not the model itself.
        eos: The token that ends a text; default: that of the configuration or the tokenizer.
        template: The chat template, if the model has one.
    """
    decoder = loaded.model if decoder is None else decoder
    config, tokenizer = decoder.generation_config, loaded.tokenizer
    defaults = take_defaults(decoder)
    if eos is not None or config.eos_token_id is None:
        config.eos_token_id = tokenizer.eos_token_id if eos is None else eos
    found = config.eos_token_id
    ends = tuple(found) if isinstance(found, list) else () if found is None else (found,)
    pad = tokenizer.pad_token_id
    if pad is None:
        pad = ends[0] if ends else 0
    if config.pad_token_id is None:
        config.pad_token_id = pad
    added = tokenizer.added_tokens_decoder
    special = {str(token): number for number, token in added.items() if token.special}
    window = window_of(decoder, tokenizer)
    model = Generative(loaded, decoder, defaults, ends, pad, window, special)
    model.marks = Marks(tokenizer, template) if template else None
    return model


def window_of(model: Any, tokenizer: Any) -> int | None:
    """Number of tokens that a model can hold; None if its configuration and its tokenizer have no limit."""
    config = model.config.get_text_config(decoder=True)
    for name in ("max_position_embeddings", "n_positions", "max_target_positions"):
        limit = getattr(config, name, None)
        if limit:
            return int(limit)
    # The tokenizer of an encoder-decoder has the encoder's limit, not the decoder's.
    limit = tokenizer.model_max_length
    bound = not model.config.is_encoder_decoder and limit and limit < NO_LIMIT
    return int(limit) if bound else None


@dataclass(frozen=True, slots=True)
class Request:
    """The input of ``generate`` for one item.

    Attributes:
        settings: How its tokens are chosen.
        prompt: The text tokens that the decoder begins with.
        continues: The answer continues the prompt's text, so its first token is written as a continuation.
        shape: Two items share a pass only if this is equal, such as the shape of their images.
        encoded: Number of tokens that an encoder reads.
    """

    settings: DecodingSettings
    prompt: Sequence[int] = ()
    continues: bool = False
    shape: Hashable = ()
    encoded: int = 0

    @property
    def context(self) -> Sequence[int]:
        return self.prompt[-CONTEXT:] if self.continues else ()

    @property
    def cost(self) -> float:
        """Share of a batch's capacity, by the number of tokens that are kept in memory."""
        settings = self.settings
        copies = max(settings.beams, settings.sequences)
        tokens = len(self.prompt) + self.encoded + settings.max_new_tokens
        return tokens * copies / ONE_ITEM_TOKENS


def generate(
    model: Generative, requests: Sequence[Request], inputs: Inputs, progress: ProgressSink, **rules: Any
) -> list[list[Row]]:
    """Answers all requests, in one pass if possible.

    Items with different settings can share a pass. Beam searches share one only if their settings are equal.

    Args:
        model: The model that generates.
        requests: One request per item.
        inputs: Makes the model's inputs for some of the items.
        progress: Receives the progress after each token, and says which items are canceled.
        rules: Further arguments of the library's ``generate``, the same for all items.

    Returns:
        The texts of each item; their number is its ``sequences``.
    """
    import torch

    made: list[list[Row]] = [[] for _ in requests]
    with torch.inference_mode():
        for items in plan(requests, model.window):
            search = _beam_search if requests[items[0]].settings.beams > 1 else _choose_each
            for row in search(model, requests, items, inputs, progress, rules):
                made[row.item].append(row)
    return made


def plan(requests: Sequence[Request], window: int | None) -> list[list[int]]:
    """Decides which items share a pass.

    All rows of a pass are padded to its longest prompt, and the pass runs until its last row ends. The sum of
    both must fit into the window: outside it a model has no positions, not even for rows that have ended.
    """
    waiting = sorted(range(len(requests)), key=lambda item: -requests[item].settings.max_new_tokens)
    passes: list[list[int]] = []
    while waiting:
        leader = requests[waiting[0]]
        steps, longest = leader.settings.max_new_tokens, len(leader.prompt)
        members, others = [], []
        for item in waiting:
            request = requests[item]
            longer = max(longest, len(request.prompt))
            fits = item == waiting[0] or window is None or longer + steps <= window
            if fits and _shared(request) == _shared(leader):
                members.append(item)
                longest = longer
            else:
                others.append(item)
        passes.append(sorted(members))
        waiting = others
    return passes


def _shared(request: Request) -> Hashable:
    return request.shape, request.settings if request.settings.beams > 1 else None


def _choose_each(
    model: Generative,
    requests: Sequence[Request],
    items: Sequence[int],
    inputs: Inputs,
    progress: ProgressSink,
    rules: dict[str, Any],
) -> list[Row]:
    """One pass in which the tokens of each row are chosen by the row's own settings."""
    rows = [
        Row(
            item,
            requests[item].settings,
            sequence,
            requests[item].context,
            {model.special[stop] for stop in requests[item].settings.stop if stop in model.special},
        )
        for item in items
        for sequence in range(requests[item].settings.sequences)
    ]
    given = inputs([row.item for row in rows])
    chooser = Chooser(
        [row.settings for row in rows],
        [row.sequence for row in rows],
        _left_padding(model, given),
        model.eos,
        model.loaded.device.torch_name,
    )
    watch = Watch(rows, model.eos, model.decode, progress, chooser.ended)
    model.decoder.generate(
        **given,
        **rules,
        do_sample=False,
        max_new_tokens=max(row.settings.max_new_tokens for row in rows),
        logits_processor=[chooser],
        stopping_criteria=[watch],
    )
    for row, broken in zip(rows, chooser.broken.tolist(), strict=True):
        row.broken = broken
    return rows


def _beam_search(
    model: Generative,
    requests: Sequence[Request],
    items: Sequence[int],
    inputs: Inputs,
    progress: ProgressSink,
    rules: dict[str, Any],
) -> list[Row]:
    """One pass of the library's own beam search, for items with equal settings."""
    settings = requests[items[0]].settings
    given = inputs(items)
    watch = BeamWatch(items, settings, progress)
    stops = _stops(model, settings.stop)
    found = model.decoder.generate(
        **given,
        **rules,
        do_sample=False,
        num_beams=settings.beams,
        num_return_sequences=settings.sequences,
        length_penalty=settings.length_penalty,
        early_stopping=settings.early_stopping,
        repetition_penalty=settings.repetition_penalty,
        min_new_tokens=settings.min_new_tokens or None,
        max_new_tokens=settings.max_new_tokens,
        forced_bos_token_id=settings.first_token,
        forced_eos_token_id=settings.last_token,
        stopping_criteria=[watch, *stops],
    )
    # The result of an encoder-decoder begins with one start token.
    start = 1 if model.decoder.config.is_encoder_decoder else given["input_ids"].shape[1]
    rows = []
    for place, tokens in enumerate(found[:, start:].tolist()):
        item, sequence = items[place // settings.sequences], place % settings.sequences
        row = Row(item, settings, sequence, requests[item].context)
        row.tokens, row.reason = _ended(model, row, tokens, watch.out_of_time)
        rows.append(row)
    return rows


def _stops(model: Generative, texts: Sequence[str]) -> list[Any]:
    """The library's own criterion for stop strings in a beam search."""
    from transformers import StopStringCriteria

    if not texts:
        return []
    # It uses the tokenizer. Inside of generate it would do so without the lock.
    with model.loaded.tokenizing:
        return [StopStringCriteria(model.tokenizer, list(texts))]


def _ended(
    model: Generative, row: Row, tokens: list[int], out_of_time: bool
) -> tuple[list[int], FinishReason]:
    """The tokens of a row of a beam search, without padding, and the reason for their end."""
    end = next((place for place, token in enumerate(tokens) if token in model.eos), None)
    if end is not None:
        return tokens[: end + 1], FinishReason.STOP
    while tokens and tokens[-1] == model.decoder.generation_config.pad_token_id:
        tokens = tokens[:-1]
    text = continuation(model.decode, row.context, tokens)
    if cut(text, row.settings.stop)[1]:
        return tokens, FinishReason.STOP
    late = out_of_time and len(tokens) < row.settings.max_new_tokens
    return tokens, FinishReason.MAX_TIME if late else FinishReason.LENGTH


def _left_padding(model: Generative, given: dict[str, Any]) -> Any:
    if model.decoder.config.is_encoder_decoder:
        return None
    return (given["attention_mask"] != 0).int().argmax(1)


def pad_left(rows: Sequence[Sequence[int]], value: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Token ids and their 0/1 mask, ``[n, longest]``, padded on the left so that all rows end together."""
    import numpy as np

    longest = max(map(len, rows))
    ids = np.full((len(rows), longest), value, dtype=np.int64)
    mask = np.zeros((len(rows), longest), dtype=np.int64)
    for index, row in enumerate(rows):
        ids[index, longest - len(row) :] = row
        mask[index, longest - len(row) :] = 1
    return ids, mask


def beam_group(defaults: Defaults, config: Any) -> Hashable:
    """The group key of an item: all items share a pass, except beam searches with different settings."""
    if defaults.beams(config) == 1:
        return ()
    return defaults.resolve(config, None, one_answer=True), config.num_return_sequences
