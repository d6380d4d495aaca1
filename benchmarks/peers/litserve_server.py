"""A LitServe server with batching: ``python -m litserve_server``. It answers with the result."""

import os
from collections.abc import Sequence
from typing import Any

import litserve

from benchmarks import work

BATCH_TIMEOUT_S = 0.001
"""How long a batch waits that is not full. With 0.01, a few connections would wait as long every time."""


# LitServe reads the annotations themselves, so they must not be strings here.
class Classifier(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.model = work.served()

    def decode_request(self, request: work.Job) -> dict[str, Any]:
        return request.model_dump()

    def batch(self, inputs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        return list(inputs)

    def predict(self, inputs: list[dict[str, Any]]) -> list[list[float]]:
        return self.model(inputs)

    def unbatch(self, output: list[list[float]]) -> list[list[float]]:
        return output

    def encode_response(self, output: list[float]) -> dict[str, list[float]]:
        return {"probabilities": output}


def main() -> None:
    api = Classifier(max_batch_size=work.max_batch(os.environ["PEER_WORK"]), batch_timeout=BATCH_TIMEOUT_S)
    server = litserve.LitServer(api, accelerator="cpu")
    server.run(
        host="127.0.0.1",
        port=int(os.environ["PEER_PORT"]),
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )


if __name__ == "__main__":
    main()
