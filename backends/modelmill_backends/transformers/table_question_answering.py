"""Table question answering by TAPAS.

Source: Herzig et al., "TAPAS: Weakly Supervised Table Parsing via Pre-training" (2020).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

from modelmill.errors import invalid_field
from modelmill_backends.contract import LoadContext, Prepared, Runner
from modelmill_backends.failures import load_failed, module_missing
from modelmill_backends.shared.literal import Spacer
from modelmill_backends.shared.losses import warn_cut, warn_unknown
from modelmill_backends.transformers.texts import TextInputs
from modelmill_backends.transformers.weights import Loaded, load_pretrained
from modelmill_tasks.item_warnings import WarningCode, warn
from modelmill_tasks.table_question_answering import Input, Output

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LONGEST_TOKEN = 100
"""Characters. The tokenizer does not split longer words."""


ROW_TYPE = 2
"""Place of a token's row among its seven numbers (``token_type_ids``); rows count from 1."""


class TableQuestionAnsweringRunner(Runner[Input, Loaded]):
    """Any TAPAS, with or without a head for aggregation.

    Rows that cannot fit are left out before the tokenizer ranks the numbers of each column, so a table may
    have more rows than the model can count.

    ``Prepared.cost`` is the item's share of the model's window.
    """

    backend = "transformers"
    task = "table-question-answering"

    def __init__(self, weights: Loaded, context: LoadContext) -> None:
        super().__init__(weights, context)
        self._tokenizer = weights.tokenizer
        self._texts = TextInputs(weights)
        # The tokenizer never splits these spellings. It splits other words at such characters anyway.
        self._literal = Spacer([weights.tokenizer])
        config = weights.model.config
        if config.model_type != "tapas":
            raise load_failed(context.entry, f"it is a {config.model_type}; only TAPAS can read tables")
        self._aggregations = _by_number(config.aggregation_labels) if config.num_aggregation_labels else None
        self._no_aggregation: int | None = config.no_aggregation_label_index
        # The model has so many embeddings for columns and rows; number 0 is for text outside the table.
        self._most_columns, self._most_rows = (size - 1 for size in config.type_vocab_sizes[1:3])

    @classmethod
    def load(cls, context: LoadContext) -> Loaded:
        if importlib.util.find_spec("pandas") is None:
            # The tokenizer takes tables only from pandas.
            raise module_missing(context.entry, "pandas", ("tables",))
        return load_pretrained(context, "AutoModelForTableQuestionAnswering", tokenizer=True)

    def group_key(self, item: Input) -> Hashable:
        # Tables of any shape become one row of tokens each.
        return ()

    def preprocess(self, item: Input) -> Prepared[Input]:
        query, tokens = self._query(self._literal(item.query))
        table = self._frame(item.table, self._texts.window - tokens - 2)
        encoded = self._tokenizer(table, query, truncation="drop_rows_to_fit", max_length=self._texts.window)
        row = self._texts.row(encoded)
        self._warn(item, encoded)
        return Prepared(item, row, cost=len(row["input_ids"]) / self._texts.window)

    def forward(self, batch: Sequence[Prepared[Input]]) -> Sequence[Any]:
        def logits(**inputs: Any) -> tuple[Any, ...]:
            found = self.weights.model(**inputs)
            return (found.logits, *([] if self._aggregations is None else [found.logits_aggregation]))

        return self._texts.run([prepared.data for prepared in batch], logits)

    def postprocess(self, prepared: Prepared[Input], raw: Sequence[NDArray[np.float32]]) -> Output:
        import torch

        # The tokenizer turns logits into cells; it takes tensors with a batch axis.
        data = {name: torch.tensor([values]) for name, values in prepared.data.items()}
        length = len(prepared.data["input_ids"])
        logits = [torch.from_numpy(part[None, :length].copy()) for part in raw]
        places, *chosen = self._tokenizer.convert_logits_to_predictions(data, *logits)
        coordinates = places[0] if places else []
        columns = list(prepared.item.table.values())
        cells = [columns[column][row] for row, column in coordinates]
        answer, aggregator = ", ".join(cells), None
        if self._aggregations is not None:
            aggregator = self._aggregations[chosen[0][0]]
            if chosen[0][0] != self._no_aggregation:
                answer = f"{aggregator} > {answer}"
        return Output(answer=answer, aggregator=aggregator, cells=cells, coordinates=coordinates)

    def _query(self, query: str) -> tuple[str, int]:
        """The query, cut off at half the window, and its number of tokens."""
        most = self._texts.window // 2
        tokens = self._tokenizer.tokenize(query[: most * LONGEST_TOKEN])
        if not tokens:
            raise invalid_field("query", "holds nothing that the model can read")
        if len(tokens) <= most and len(query) <= most * LONGEST_TOKEN:
            return query, len(tokens)
        warn_cut("query", min(len(tokens), most), len(self._tokenizer.tokenize(query)))
        return self._tokenizer.convert_tokens_to_string(tokens[:most]), min(len(tokens), most)

    def _warn(self, item: Input, encoded: Any) -> None:
        """Warns the caller of rows that did not fit, and of words that the model does not know."""
        read = max(types[ROW_TYPE] for types in encoded["token_type_ids"])
        rows = len(next(iter(item.table.values())))
        if read < rows:
            message = f"The model read the first {read:,} of the table's {rows:,} rows."
            warn(WarningCode.ROWS_LEFT_OUT, message)
        ids = encoded["input_ids"]
        warn_unknown("query and the table", ids.count(self._tokenizer.unk_token_id), len(ids))

    def _frame(self, table: dict[str, list[str]], room: int) -> Any:
        """The table as the tokenizer takes it, without rows that cannot fit even with one token per cell."""
        import pandas as pd

        # A column takes at least two tokens: one for its header and one for a cell.
        most = min(self._most_columns, room // 2)
        if len(table) > most:
            raise invalid_field(
                "table", f"has {len(table)} columns; with this query the model takes at most {most}"
            )
        rows = min(self._most_rows, room // len(table) - 1)
        # dtype=object: the default type for texts depends on the version of pandas.
        columns = [list(map(self._literal, column[:rows])) for column in table.values()]
        frame = pd.DataFrame(dict(enumerate(columns)), dtype=object)
        frame.columns = pd.Index(list(map(self._literal, table)), dtype=object)
        return frame


def _by_number(labels: Any) -> dict[int, str]:
    """The configuration's labels by number. In JSON their numbers are texts."""
    return {int(number): str(label) for number, label in labels.items()}
