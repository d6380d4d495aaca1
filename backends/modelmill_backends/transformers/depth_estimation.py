"""Depth estimation by any model of ``AutoModelForDepthEstimation``: DPT, Depth Anything, ZoeDepth."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from modelmill_backends.contract import LoadContext, Prepared, Runner
from modelmill_backends.shared.masks import png_map
from modelmill_backends.transformers.regions import RegionInputs, as_outputs, load_for_images
from modelmill_backends.transformers.weights import Loaded
from modelmill_tasks.depth_estimation import Input, Output


class DepthEstimationRunner(Runner[Input, Loaded]):
    """The model's own processor scales the map to the image."""

    backend = "transformers"
    task = "depth-estimation"

    def __init__(self, weights: Loaded, context: LoadContext) -> None:
        super().__init__(weights, context)
        self._images = RegionInputs(weights, ("predicted_depth", "field_of_view"))

    @classmethod
    def load(cls, context: LoadContext) -> Loaded:
        method = "post_process_depth_estimation"
        return load_for_images(context, "AutoModelForDepthEstimation", method, "scale maps of depth")

    def group_key(self, item: Input) -> Hashable:
        return ()

    def preprocess(self, item: Input) -> Prepared[Input]:
        return Prepared(item, self._images.prepare(item.image))

    def forward(self, batch: Sequence[Prepared[Input]]) -> Sequence[Any]:
        return self._images.run([prepared.data for prepared in batch])

    def postprocess(self, prepared: Prepared[Input], raw: Any) -> Output:
        # Positional arguments: ZoeDepth names the sizes source_sizes, other processors target_sizes.
        (found,) = self.weights.image_processor.post_process_depth_estimation(
            as_outputs(raw), [prepared.data.size]
        )
        # reshape: the library squeezes the map of an image that is one pixel wide.
        depth = found["predicted_depth"].reshape(prepared.data.size).numpy()
        picture, low, high = png_map(depth)
        return Output(depth=picture, minimum=low, maximum=high)
