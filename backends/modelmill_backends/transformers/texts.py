"""Texts for models of ``transformers``: tokenized one by one in threads, then batched on the device."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from modelmill.errors import invalid_field
from modelmill_backends.contract import Item, LoadContext, Runner
from modelmill_backends.failures import load_failed
from modelmill_backends.shared.losses import Read, read_encoding, warn_of, warn_unknown
from modelmill_backends.shared.sentences import DEFAULT_WINDOW, least_limit
from modelmill_backends.transformers.weights import Loaded, load_pretrained

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TOKENS_A_PASS = 32_768
"""The most tokens of one pass, padding included: a single item may have a thousand pairs or windows."""

NOTHING = "holds nothing that the model can read"

Row = Mapping[str, Sequence[Any]]
"""The model's inputs for one text, by name. Each has one value, or one list of values, per token."""


def check_positions(loaded: Loaded, context: LoadContext) -> None:
    """Refuses a model whose tokenizer cannot say where in the text a token stands.

    Raises:
        ModelmillError: ``model_load_failed``.
    """
    if not loaded.tokenizer.is_fast:
        raise load_failed(context.entry, "its tokenizer does not give the positions of tokens in the text")


class TextInputs:
    """The inputs of a model that reads texts.

    Args:
        loaded: The model and its tokenizer.
        window: Number of tokens that the model can read, special ones included; default: ``window_of``.
        tokens_a_pass: The most tokens of one pass, padding included.
        whole: The model judges texts as a whole, maybe by their last token.
    """

    def __init__(
        self,
        loaded: Loaded,
        window: int | None = None,
        *,
        tokens_a_pass: int = TOKENS_A_PASS,
        whole: bool = False,
    ) -> None:
        self._loaded = loaded
        self.window = window or window_of(loaded)
        self._pad_id = getattr(loaded.model.config, "pad_token_id", None)
        # Such a model finds the last token by the padding's id. Without that id it takes one text at a time.
        self._tokens_a_pass = 1 if whole and self._pad_id is None else tokens_a_pass
        names = inspect.signature(loaded.model.forward).parameters
        self._takes = frozenset(names)
        # A cache of keys and values helps only when generating, and costs memory.
        self._fixed = {"use_cache": False} if "use_cache" in names else {}

    def encode(
        self, text: Any, pair: Any = None, *, field: str = "text", warns: bool = True, **options: Any
    ) -> Any:
        """The tokenizer's ``BatchEncoding`` of one or two texts, cut off at the window. Runs in threads.

        Args:
            text: The text.
            pair: A second text after it.
            field: The request's field that the text comes from.
            warns: Warn the caller of what the model does not read of a single text.
            options: Options of the tokenizer.

        Raises:
            ModelmillError: ``invalid_input``: the text has no tokens.
        """
        settings: dict[str, Any] = {"truncation": True, "max_length": self.window, "verbose": False} | options
        with self._loaded.tokenizing:
            encoded = self._loaded.tokenizer(text, pair, **settings)
        if not encoded["input_ids"]:
            raise invalid_field(field, NOTHING)
        if warns:
            warn_of(self.read(encoded, text), field)
        return encoded

    def read(self, encoded: Any, text: str) -> Read:
        """The tokens of a single text that ``encode`` has cut off at the window."""
        return read_text(self._loaded, encoded, text)

    def windows(
        self, text: str, pair: str | None = None, *, window: int, stride: int, field: str = "text"
    ) -> list[dict[str, Any]]:
        """A whole text in windows that overlap. With two texts, the second in windows, each after the first.

        Args:
            text: The text.
            pair: The second text.
            window: Number of tokens of a window, special ones included.
            stride: Number of tokens that neighbours share.
            field: The request's field that is divided into windows.

        Returns:
            For each window the model's inputs, and, with one value per token, ``offset_mapping`` in code
            points, ``special_tokens_mask``, ``sequence_ids`` and ``word_ids`` as in the library.
        """
        encoded = self.encode(
            [text],  # a list, because windows are rows of a batch
            None if pair is None else [pair],
            field=field,
            warns=False,
            truncation="longest_first" if pair is None else "only_second",
            max_length=window,
            stride=stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
        )
        count = len(encoded["input_ids"])
        encoded.pop("overflow_to_sample_mapping", None)
        found = [{name: values[index] for name, values in encoded.items()} for index in range(count)]
        for index, one in enumerate(found):
            one["sequence_ids"] = encoded.sequence_ids(index)
            one["word_ids"] = encoded.word_ids(index)
        if not any(0 in one["special_tokens_mask"] for one in found):
            raise invalid_field(field, NOTHING)
        unknown = self._loaded.tokenizer.unk_token_id
        own = 0 if pair is None else 1
        read = [
            number
            for one in found
            for number, sequence in zip(one["input_ids"], one["sequence_ids"], strict=True)
            if sequence == own
        ]
        warn_unknown(field, read.count(unknown), len(read))
        return found

    def length(self, text: str, pair: str | None = None, **options: Any) -> int:
        """The number of tokens of one or two texts, special ones included, before they are cut off.

        Args:
            text: The text.
            pair: A second text after it.
            options: The same options of the tokenizer as for ``encode``.
        """
        options = {"truncation": False, "max_length": None} | options
        return len(self.encode(text, pair, warns=False, **options)["input_ids"])

    def names(self, ids: Sequence[int]) -> list[str]:
        """The entries of the vocabulary for these token ids."""
        with self._loaded.tokenizing:
            names: list[str] = self._loaded.tokenizer.convert_ids_to_tokens(ids)
        return names

    def row(self, encoded: Mapping[str, Any]) -> Row:
        """The part of the tokenizer's result that the model takes."""
        return {name: values for name, values in encoded.items() if name in self._takes}

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Token ids as text. Runs in threads."""
        with self._loaded.tokenizing:
            text: str = self._loaded.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        return text

    def cut(self, text: str, tokens: int) -> str:
        """The beginning of ``text`` with ``tokens`` tokens, or the whole text if it is shorter.

        If the tokenizer does not give offsets, the text stays whole.
        """
        if len(text) <= tokens or not self._loaded.tokenizer.is_fast:
            # A token has at least one character, except tokens for the bytes of rare characters.
            return text
        offsets = self._offsets(text, max_length=tokens + 1)
        return text if len(offsets) <= tokens else text[: offsets[tokens - 1][1]]

    def tail(self, text: str, tokens: int) -> str:
        """The end of ``text`` with ``tokens`` tokens, or the whole text if it is shorter; as ``cut``."""
        if len(text) <= tokens or not self._loaded.tokenizer.is_fast:
            return text
        offsets = self._offsets(text, truncation=False, max_length=None)
        return text if len(offsets) <= tokens else text[offsets[-tokens][0] :]

    def _offsets(self, text: str, **options: Any) -> Sequence[tuple[int, int]]:
        options = {"add_special_tokens": False, "return_offsets_mapping": True} | options
        found: Sequence[tuple[int, int]] = self.encode(text, warns=False, **options)["offset_mapping"]
        return found

    def run(
        self, rows: Sequence[Row], model: Callable[..., Sequence[Any]]
    ) -> list[tuple[NDArray[np.float32], ...]]:
        """The results of ``model`` for each row, in order.

        Rows of similar length share a pass, in as few passes as ``tokens_a_pass`` allows.

        Args:
            rows: Results of ``row``.
            model: Takes the model's inputs, ``[n, tokens]`` each, and returns tensors ``[n, …]``.

        Returns:
            For each row its part of each tensor. An axis of tokens still includes the padding.
        """
        import torch

        found: list[Any] = [None] * len(rows)
        with torch.inference_mode():
            for chunk in self._chunks(rows):
                tensors = model(**self._on_device([rows[index] for index in chunk]))
                arrays = [tensor.float().cpu().numpy() for tensor in tensors]
                for place, index in enumerate(chunk):
                    # The parts are views: they keep the arrays of the whole pass in memory.
                    found[index] = tuple(array[place] for array in arrays)
        return found

    def logits(self, rows: Sequence[Row]) -> list[NDArray[np.float32]]:
        """The model's ``logits`` for each row, as in ``run``."""
        model = self._loaded.model
        found = self.run(rows, lambda **inputs: (model(**inputs).logits,))
        return [logits for (logits,) in found]

    def _chunks(self, rows: Sequence[Row]) -> Iterator[list[int]]:
        """The indices of the rows of each pass."""
        chunk: list[int] = []
        for index in sorted(range(len(rows)), key=lambda index: len(rows[index]["input_ids"])):
            # This row is the longest so far: all rows of the pass are padded to it.
            length = len(rows[index]["input_ids"])
            if chunk and length * (len(chunk) + 1) > self._tokens_a_pass:
                yield chunk
                chunk = []
            chunk.append(index)
        if chunk:
            yield chunk

    def _on_device(self, rows: Sequence[Row]) -> dict[str, Any]:
        tokenizer = self._loaded.tokenizer
        fillers = {
            "input_ids": tokenizer.pad_token_id or self._pad_id or 0,
            "token_type_ids": getattr(tokenizer, "pad_token_type_id", 0) or 0,
        }
        arrays = {name: _padded([row[name] for row in rows], fillers.get(name, 0)) for name in rows[0]}
        return self._loaded.to_device(**arrays) | self._fixed


class SequenceClassifierRunner(Runner[Item, Loaded]):
    """Base of runners on a model that judges whole texts. The runners of one model share its weights."""

    backend = "transformers"

    def __init__(self, weights: Loaded, context: LoadContext) -> None:
        super().__init__(weights, context)
        self._texts = TextInputs(weights, whole=True)

    @classmethod
    def load(cls, context: LoadContext) -> Loaded:
        return load_pretrained(context, "AutoModelForSequenceClassification", tokenizer=True)

    def group_key(self, item: Item) -> Hashable:
        # forward uses nothing that the caller can set.
        return ()


def read_text(loaded: Loaded, encoded: Any, text: str) -> Read:
    """The tokens of a single text that the tokenizer has cut off at the window. Runs in threads."""
    tokenizer = loaded.tokenizer
    if encoded.encodings:
        return read_encoding(encoded.encodings[0], tokenizer.unk_token_id)
    ids = encoded["input_ids"]
    with loaded.tokenizing:
        total = len(tokenizer(text, verbose=False)["input_ids"])
    return Read(tuple(ids), total, ids.count(tokenizer.unk_token_id), tokenizer.num_special_tokens_to_add())


def window_of(loaded: Loaded) -> int:
    """Number of tokens that the model can read: the lowest limit of tokenizer, configuration, weights."""
    config = loaded.model.config.get_text_config()
    limits = [loaded.tokenizer.model_max_length, getattr(config, "max_position_embeddings", None)]
    for name, module in loaded.model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and padding is not None:
            # RoBERTa and similar models count positions from the one after the padding's.
            limits.append(module.num_embeddings - padding - 1)
    return least_limit(limits, DEFAULT_WINDOW)


def _padded(rows: Sequence[Sequence[Any]], value: int) -> NDArray[np.int64]:
    """Whole numbers ``[n, longest, …]``, padded on the right."""
    import numpy as np

    arrays = [np.asarray(row, dtype=np.int64) for row in rows]
    longest = max(len(array) for array in arrays)
    padded = np.full((len(arrays), longest, *arrays[0].shape[1:]), value, dtype=np.int64)
    for index, array in enumerate(arrays):
        padded[index, : len(array)] = array
    return padded
