"""Models that take images and write text (``AutoModelForImageTextToText``, with a chat template): LLaVA."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelmill.errors import invalid_field
from modelmill_backends.contract import Item, LoadContext, Prepared, Runner
from modelmill_backends.failures import load_failed
from modelmill_backends.options import read_options
from modelmill_backends.shared.literal import Marks, control_tokens, read_literally
from modelmill_backends.transformers.causal import config_of
from modelmill_backends.transformers.chat import has_template, rich_messages, templated
from modelmill_backends.transformers.decoding import check_room
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
from modelmill_tasks.shared.images import open_image

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Seen:
    """One conversation, prepared for the model.

    Attributes:
        request: Its tokens, including those that stand for images.
        per_token: Further arrays ``[tokens]`` with one value per token.
        images: The processor's arrays for the images. The first axis counts images or their patches.
    """

    request: Request
    per_token: Mapping[str, NDArray[Any]]
    images: Mapping[str, NDArray[Any]]


class VisionLanguageRunner(Runner[Item, Generative]):
    """Base of the runners on such a model. The runners of one model share its weights."""

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
        loaded.tokenizer = read_literally(processor.tokenizer)
        model = generative(loaded, template=processor.chat_template)
        model.processor = processor
        return model

    def group_key(self, item: Item) -> Hashable:
        return beam_group(self.weights.defaults, config_of(item))

    def prepared(self, item: Item, messages: Sequence[Message], field: str) -> Prepared[Item]:
        """The item, prepared as a conversation.

        Raises:
            ModelmillError: ``invalid_input``: the template refuses it, or it fills the window; or a code of
                media.
        """
        rich, sources = rich_messages(messages)
        marks: Marks = self.weights.marks  # type: ignore[assignment]  # load has made them
        text = templated(self.weights.processor, marks, rich, field)
        images = [open_image(source) for source in sources]
        begin = self.weights.tokenizer.bos_token
        # Some templates write the token that begins a text; others leave it to the tokenizer.
        options = {"add_special_tokens": False} if begin and text.startswith(begin) else {}
        with self.weights.loaded.tokenizing, control_tokens(self.weights.tokenizer):
            found = dict(
                self.weights.processor(text=[text], images=images or None, return_tensors="np", **options)
            )
        marked = found.pop("input_ids")
        found.pop("attention_mask", None)
        ids, places = marks.without(marked[0].tolist())
        per_token = {
            name: values[0][places] for name, values in found.items() if values.shape == marked.shape
        }
        pixels = {name: values for name, values in found.items() if name not in per_token}
        self.weights.warn_of_unknown(ids, field)
        room = check_room(field, len(ids), self.weights.window)
        settings = self.weights.defaults.resolve(config_of(item), room)
        if settings.beams > 1 and len(images) > 1:
            raise invalid_field(
                "config.num_beams", "a beam search takes at most one image; leave num_beams out"
            )
        # The arrays of all items' images are concatenated, so their other axes must be equal. A beam
        # search repeats images row by row, so it needs one image per row.
        shape = tuple(sorted((name, values.shape[1:]) for name, values in pixels.items()))
        if not pixels and settings.beams == 1:
            shape = ()
        request = Request(settings, ids, shape=shape)
        return Prepared(item, Seen(request, per_token, pixels), request.cost)

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
        for name in {name for seen in rows for name in seen.per_token}:
            arrays[name] = pad_left([seen.per_token[name].tolist() for seen in rows], 0)[0]
        for name in {name for seen in rows for name in seen.images}:
            arrays[name] = np.concatenate([seen.images[name] for seen in rows if name in seen.images])
        return model.loaded.in_model_dtype(model.loaded.to_device(**arrays))
