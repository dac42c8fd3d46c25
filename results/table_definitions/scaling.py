"""The table of SCALING.md."""

from bench.memory_table import TOKENS, rows
from results.tables import table


def memory() -> str:
    """GiB a GPU by size of the model: counted, not measured."""
    return table(["model", "parameters", "alone", "DDP", "sharded over 8", f"+ {TOKENS:,} tokens"], rows())


TABLES = {"memory": memory}
