"""An example of a function for the task ``custom``."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from modelmill.errors import invalid_field


def count_words(inputs: list[Any], config: dict[str, Any]) -> list[dict[str, Any]]:
    """The number of words of each text, and its most common words: ``top_k`` of them, as ``config`` says."""
    return [_count(text, config.get("top_k", 3)) for text in inputs]


def _count(text: Any, top_k: Any) -> dict[str, Any]:
    if not isinstance(text, str):
        raise invalid_field("input", "must be a text")
    if not isinstance(top_k, int) or top_k < 0:
        raise invalid_field("config.top_k", "must be a whole number, 0 or more")
    words = re.findall(r"\w+", text.lower())
    return {"words": len(words), "most_common": [list(pair) for pair in Counter(words).most_common(top_k)]}
