"""Small real inputs for the tasks' examples."""

from __future__ import annotations

import base64
from importlib.resources import files


def _data_url(name: str, media_type: str) -> str:
    data = (files("modelmill_tasks") / "data" / name).read_bytes()
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


CAT = _data_url("cat.jpg", "image/jpeg")
"""scikit-image's `chelsea` (CC0, Stéfan van der Walt), scaled down."""

SPEECH = _data_url("speech.ogg", "audio/ogg")
"""Says "go forward ten meters": PocketSphinx's test recording `goforward` (BSD-2-Clause, © 1999-2016 Carnegie
Mellon University: data/speech.LICENSE.txt), as Vorbis."""
