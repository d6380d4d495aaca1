"""Image to text by BLIP, and by any image encoder with a text decoder (``VisionEncoderDecoder``)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelmill.errors import invalid_field
from modelmill_backends.contract import LoadContext, Prepared, Runner
from modelmill_backends.failures import load_failed
from modelmill_backends.transformers.answers import now, texts_of, usage_of
from modelmill_backends.transformers.decoding import check_room
from modelmill_backends.transformers.generation import (
    Generative,
    Request,
    beam_group,
    generate,
    generative,
    pad_left,
)
from modelmill_backends.transformers.pictures import pixels_of, stacked
from modelmill_backends.transformers.stopping import Row
from modelmill_backends.transformers.weights import load_pretrained
from modelmill_tasks.image_to_text import Input, Output

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLIP, ENCODER_DECODER = "blip", "vision-encoder-decoder"


@dataclass(frozen=True, slots=True)
class Picture:
    """One image, and the request with the first tokens of its text."""

    pixels: NDArray[Any]
    request: Request


class ImageToTextRunner(Runner[Input, Generative]):
    """BLIP continues the caller's text; other models take no text."""

    backend = "transformers"
    task = "image-to-text"

    def __init__(self, weights: Generative, context: LoadContext) -> None:
        super().__init__(weights, context)
        self._continues = weights.loaded.model.config.model_type == BLIP

    @classmethod
    def load(cls, context: LoadContext) -> Generative:
        loaded = load_pretrained(context, "AutoModelForImageTextToText", tokenizer=True, images=True)
        model = loaded.model
        if model.config.model_type == BLIP:
            return generative(loaded, model.text_decoder, eos=model.config.text_config.sep_token_id)
        if model.config.model_type == ENCODER_DECODER:
            return generative(loaded)
        kind = type(model).__name__
        loaded.close()
        raise load_failed(
            context.entry,
            f"a {kind} does not answer image-to-text; use chat-completion with an image, "
            'and set runner = "vision"',
        )

    def group_key(self, item: Input) -> Hashable:
        return beam_group(self.weights.defaults, item.config)

    def preprocess(self, item: Input) -> Prepared[Input]:
        prompt = self._prompt(item.text)
        room = check_room("text", max(1, len(prompt)), self.weights.window)
        settings = self.weights.defaults.resolve(item.config, room, one_answer=True)
        pixels = pixels_of(self.weights.loaded, item.image)
        request = Request(settings, prompt, continues=item.text is not None, shape=pixels.shape)
        return Prepared(item, Picture(pixels, request), max(1.0, request.cost))

    def forward(self, batch: Sequence[Prepared[Input]]) -> Sequence[Any]:
        pictures: list[Picture] = [prepared.data for prepared in batch]

        def inputs(items: Sequence[int]) -> dict[str, Any]:
            pixels = stacked(self.weights.loaded, [pictures[item].pixels for item in items])
            if not self._continues:
                return {"pixel_values": pixels}
            return self._begun([pictures[item].request.prompt for item in items], pixels)

        return generate(self.weights, [picture.request for picture in pictures], inputs, self.progress)

    def postprocess(self, prepared: Prepared[Input], raw: Sequence[Row]) -> Output:
        request: Request = prepared.data.request
        begun = "" if prepared.item.text is None else self.weights.decode(request.prompt)
        text = (begun + texts_of(self.weights, raw)[0]).strip()
        usage = usage_of(max(1, len(request.prompt)), raw)
        return Output(text=text, usage=usage, created=now())

    def _prompt(self, text: str | None) -> list[int]:
        """The decoder's first tokens, as in ``BlipForConditionalGeneration.generate``."""
        if not self._continues:
            if text is not None:
                raise invalid_field("text", "this model takes no beginning of its answer; leave text out")
            return []
        config = self.weights.loaded.model.config.text_config
        if text is None:
            return [config.bos_token_id]
        # Without the first token, which is replaced, and the last, which would end the text.
        return [config.bos_token_id, *self.weights.encode(text)[1:-1]]

    def _begun(self, prompts: Sequence[Sequence[int]], pixels: Any) -> dict[str, Any]:
        import torch

        seen = self.weights.loaded.model.vision_model(pixel_values=pixels)[0]
        ids, mask = pad_left(prompts, self.weights.pad)
        return {
            **self.weights.loaded.to_device(input_ids=ids, attention_mask=mask),
            "encoder_hidden_states": seen,
            "encoder_attention_mask": torch.ones(seen.shape[:-1], dtype=torch.long, device=seen.device),
        }
