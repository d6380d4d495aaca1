"""Models that see and write (``AutoModelForImageTextToText`` with a chat template), such as LLaVA."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelmill_backends.contract import Item, LoadContext, Prepared, Runner
from modelmill_backends.failures import load_failed
from modelmill_backends.options import read_options
from modelmill_backends.transformers.causal import config_of
from modelmill_backends.transformers.chat import has_template, rich_messages, templated
from modelmill_backends.transformers.decoding import check_room, refused
from modelmill_backends.transformers.generation import (
    Generative,
    Request,
    beam_group,
    generate,
    generative,
    pad_left,
)
from modelmill_backends.transformers.weights import TransformersOptions, load_pretrained
from modelmill_tasks.chat_completion import Message
from modelmill_tasks.shared.media import open_image

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Seen:
    """One conversation, ready for the model.

    Attributes:
        request: Its tokens, among them those that stand for images.
        beside: Further arrays ``[tokens]``, one value a token.
        images: What the processor made of the images, with an axis of images or of their patches first.
    """

    request: Request
    beside: Mapping[str, NDArray[Any]]
    images: Mapping[str, NDArray[Any]]


class VisionLanguageRunner(Runner[Item, Generative]):
    """Base of the runners on such a model; one model's runners share its weights."""

    backend = "transformers"
    name = "vision"

    @classmethod
    def load(cls, context: LoadContext) -> Generative:
        import transformers

        loaded = load_pretrained(context, "AutoModelForImageTextToText")
        remote = read_options(context.entry, TransformersOptions).trust_remote_code
        processors: Any = transformers.AutoProcessor
        processor = processors.from_pretrained(loaded.folder, local_files_only=True, trust_remote_code=remote)
        if not has_template(processor):
            loaded.close()
            raise load_failed(context.entry, "its processor has no chat template")
        loaded.tokenizer = processor.tokenizer
        model = generative(loaded)
        model.processor = processor
        return model

    def group_key(self, item: Item) -> Hashable:
        return beam_group(self.weights.defaults, config_of(item))

    def prepared(self, item: Item, messages: Sequence[Message], field: str) -> Prepared[Item]:
        """The item, as a conversation.

        Raises:
            ModelmillError: ``invalid_input``: the template refuses it, or it fills the window; a media code.
        """
        rich, sources = rich_messages(messages)
        text = templated(self.weights.processor, rich, field)
        images = [open_image(source) for source in sources]
        begin = self.weights.tokenizer.bos_token
        # Some templates write the token that a text begins with, and others leave it to the tokenizer.
        options = {"add_special_tokens": False} if begin and text.startswith(begin) else {}
        with self.weights.loaded.tokenizing:
            found = dict(
                self.weights.processor(text=[text], images=images or None, return_tensors="np", **options)
            )
        ids = found.pop("input_ids")
        found.pop("attention_mask", None)
        beside = {name: values[0] for name, values in found.items() if values.shape == ids.shape}
        pixels = {name: values for name, values in found.items() if name not in beside}
        room = check_room(field, ids.shape[1], self.weights.window)
        settings = self.weights.defaults.resolve(config_of(item), room)
        if settings.beams > 1 and len(images) > 1:
            raise refused("config.num_beams", "beams take one image at most; ask without them")
        # An array of images goes on where that of the last item ends, so all further axes must be equal. A
        # beam search repeats them row by row, which needs as many images as rows.
        shape = tuple(sorted((name, values.shape[1:]) for name, values in pixels.items()))
        if not pixels and settings.beams == 1:
            shape = ()
        request = Request(settings, ids[0].tolist(), shape=shape)
        return Prepared(item, Seen(request, beside, pixels), request.cost)

    def forward(self, batch: Sequence[Prepared[Item]]) -> Sequence[Any]:
        found: list[Seen] = [prepared.data for prepared in batch]

        def inputs(items: Sequence[int]) -> dict[str, Any]:
            return self._inputs([found[item] for item in items])

        return generate(self.weights, [seen.request for seen in found], inputs, self.progress)

    def _inputs(self, rows: Sequence[Seen]) -> dict[str, Any]:
        import numpy as np

        model = self.weights
        ids, mask = pad_left([seen.request.prompt for seen in rows], model.pad)
        arrays: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        for name in {name for seen in rows for name in seen.beside}:
            arrays[name] = pad_left([seen.beside[name].tolist() for seen in rows], 0)[0]
        for name in {name for seen in rows for name in seen.images}:
            arrays[name] = np.concatenate([seen.images[name] for seen in rows if name in seen.images])
        return model.loaded.in_model_dtype(model.loaded.to_device(**arrays))
