"""Visual question answering: with fixed answers (ViLT) or written answers (BLIP, and models that chat)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelmill.errors import invalid_field
from modelmill_backends.contract import LoadContext, Prepared, Runner
from modelmill_backends.failures import load_failed
from modelmill_backends.shared.losses import warn_unknown
from modelmill_backends.shared.numerics import sigmoid
from modelmill_backends.shared.sentences import pad
from modelmill_backends.transformers.answers import now, texts_of
from modelmill_backends.transformers.generation import Generative, Request, beam_group, generate, generative
from modelmill_backends.transformers.images import ImageInputs, to_arrays
from modelmill_backends.transformers.pictures import pixels_of, stacked
from modelmill_backends.transformers.stopping import Row
from modelmill_backends.transformers.vision_language import VisionLanguageRunner
from modelmill_backends.transformers.weights import Loaded, load_pretrained
from modelmill_tasks.chat_completion import ContentPart, ImagePart, Message, Role, TextPart
from modelmill_tasks.shared.images import open_image
from modelmill_tasks.visual_question_answering import Answer, Input, Output

if TYPE_CHECKING:
    from numpy.typing import NDArray

AUTO_CLASS = "AutoModelForVisualQuestionAnswering"


class ChoosingRunner(Runner[Input, Loaded]):
    """ViLT: each answer in the model's ``id2label`` is judged independently."""

    backend = "transformers"
    task = "visual-question-answering"

    def __init__(self, weights: Loaded, context: LoadContext) -> None:
        super().__init__(weights, context)
        config = weights.model.config
        self._images = ImageInputs(weights)
        self._window = int(config.max_position_embeddings)
        self._answers = [config.id2label[index] for index in range(config.num_labels)]

    @classmethod
    def load(cls, context: LoadContext) -> Loaded:
        loaded = load_pretrained(context, AUTO_CLASS, tokenizer=True, images=True)
        if loaded.model.config.model_type != "vilt":
            kind = type(loaded.model).__name__
            loaded.close()
            raise load_failed(
                context.entry, f'a {kind} writes its answers; its entry needs runner = "generative"'
            )
        return loaded

    def group_key(self, item: Input) -> Hashable:
        # Only postprocess uses num_answers.
        return ()

    def preprocess(self, item: Input) -> Prepared[Input]:
        arrays = dict(to_arrays(self.weights.image_processor, open_image(item.image)))
        return Prepared(item, arrays | self._question(item.question))

    def forward(self, batch: Sequence[Prepared[Input]]) -> Sequence[Any]:
        model = self.weights.model
        rows = [prepared.data for prepared in batch]
        return list(sigmoid(self._images.run(rows, lambda **inputs: model(**inputs).logits)))

    def postprocess(self, prepared: Prepared[Input], raw: Any) -> Output:
        import numpy as np

        best = np.argsort(-raw, kind="stable")[: prepared.item.config.num_answers]
        answers = [Answer(answer=self._answers[index], score=float(raw[index])) for index in best]
        return Output(answers=answers, created=now())

    def _question(self, text: str) -> dict[str, NDArray[Any]]:
        """Ids and mask, padded to the window so that questions of any length share a pass."""
        import numpy as np

        tokenizer = self.weights.tokenizer
        with self.weights.tokenizing:
            ids = tokenizer(text, verbose=False)["input_ids"]
        _check_question(len(ids), self._window)
        warn_unknown("question", ids.count(tokenizer.unk_token_id), len(ids))
        filled = np.full(self._window, tokenizer.pad_token_id or 0, dtype=np.int64)
        filled[: len(ids)] = ids
        mask = (np.arange(self._window) < len(ids)).astype(np.int64)
        return {"input_ids": filled, "attention_mask": mask}


@dataclass(frozen=True, slots=True)
class Question:
    """One image and the tokens of a question."""

    pixels: NDArray[Any]
    ids: list[int]
    request: Request


class GenerativeRunner(Runner[Input, Generative]):
    """BLIP: an encoder reads the image and the question, a decoder writes the answer."""

    backend = "transformers"
    task = "visual-question-answering"
    name = "generative"

    @classmethod
    def load(cls, context: LoadContext) -> Generative:
        loaded = load_pretrained(context, AUTO_CLASS, tokenizer=True, images=True)
        model = loaded.model
        if model.config.model_type != "blip":
            kind = type(model).__name__
            loaded.close()
            raise load_failed(context.entry, f"the runner 'generative' is for BLIP, not for a {kind}")
        return generative(loaded, model.text_decoder, eos=model.config.text_config.sep_token_id)

    def group_key(self, item: Input) -> Hashable:
        return beam_group(self.weights.defaults, item.config)

    def preprocess(self, item: Input) -> Prepared[Input]:
        window = self.weights.window
        ids = self.weights.encode(item.question)
        _check_question(len(ids), window)
        self.weights.warn_of_unknown(ids, "question")
        settings = self.weights.defaults.resolve(item.config, None if window is None else window - 1)
        pixels = pixels_of(self.weights.loaded, item.image)
        begin = [self.weights.loaded.model.decoder_start_token_id]
        # Only questions of one length share a pass: the library's decoder reads padding in spite of its mask.
        shape = (pixels.shape, len(ids))
        request = Request(settings, begin, shape=shape, encoded=len(ids))
        return Prepared(item, Question(pixels, ids, request), max(1.0, request.cost))

    def forward(self, batch: Sequence[Prepared[Input]]) -> Sequence[Any]:
        found: list[Question] = [prepared.data for prepared in batch]

        def inputs(items: Sequence[int]) -> dict[str, Any]:
            return self._inputs([found[item] for item in items])

        return generate(self.weights, [question.request for question in found], inputs, self.progress)

    def postprocess(self, prepared: Prepared[Input], raw: Sequence[Row]) -> Output:
        return written(self.weights, raw, prepared.item.config.num_answers)

    def _inputs(self, rows: Sequence[Question]) -> dict[str, Any]:
        """As in ``BlipForQuestionAnswering.generate``; all questions have the same length."""
        import torch

        model = self.weights.loaded.model
        seen = model.vision_model(pixel_values=stacked(self.weights.loaded, [row.pixels for row in rows]))[0]
        ids, mask = pad([row.ids for row in rows], self.weights.pad)
        texts = self.weights.loaded.to_device(input_ids=ids, attention_mask=mask)
        read = model.text_encoder(
            **texts,
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:-1], dtype=torch.long, device=seen.device),
        )[0]
        begin = torch.full((len(rows), 1), model.decoder_start_token_id, device=seen.device)
        return {
            "input_ids": begin,
            "attention_mask": torch.ones_like(begin),
            "encoder_hidden_states": read,
            "encoder_attention_mask": texts["attention_mask"],
        }


class ChattingRunner(VisionLanguageRunner[Input]):
    """LLaVA and similar models: the question is a user's message with an image."""

    task = "visual-question-answering"

    def preprocess(self, item: Input) -> Prepared[Input]:
        # Without checks: the image was checked with the request.
        image = ImagePart.model_construct(type="image", image=item.image)
        parts: list[ContentPart] = [image, TextPart(type="text", text=item.question)]
        message = Message.model_construct(role=Role.USER, content=parts)
        return self.prepared(item, [message], "question")

    def postprocess(self, prepared: Prepared[Input], raw: Sequence[Row]) -> Output:
        return written(self.weights, raw, prepared.item.config.num_answers)


def written(model: Generative, rows: Sequence[Row], most: int) -> Output:
    """The answers that a model wrote, without repetitions, at most ``most``."""
    texts = dict.fromkeys(text.strip() for text in texts_of(model, rows))
    answers = [Answer(answer=text, score=None) for text in list(texts)[:most]]
    return Output(answers=answers, created=now())


def _check_question(tokens: int, window: int | None) -> None:
    if window is not None and tokens > window:
        raise invalid_field("question", f"has {tokens:,} tokens, and the model reads {window:,}; shorten it")
