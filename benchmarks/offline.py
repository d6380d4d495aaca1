"""The offline ideal: photos decoded, preprocessed and run through the same ONNX file, in a plain loop.

A program of its own: for each line ``<batch> <images>`` on standard input it answers with the seconds taken.
"""

from __future__ import annotations

import sys
import time

from benchmarks.photo import photo
from modelmill_backends.loader import load
from modelmill_backends.onnx.imagenet import pixels
from modelmill_tasks.shared.images import open_image


def main(name: str) -> None:
    """Loops over the classifier of the model ``name``."""
    classifier = load(name).runner("zero-shot-image-classification").weights.classifier
    for line in sys.stdin:
        batch, images = map(int, line.split())
        started = time.perf_counter()
        for start in range(0, images, batch):
            size = min(batch, images - start)
            classifier.probabilities([pixels(open_image(photo())) for _ in range(size)])
        print(time.perf_counter() - started, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
