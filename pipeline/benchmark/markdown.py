"""Tables as Markdown."""

from collections.abc import Iterable, Sequence


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], *, num_texts: int = 1) -> str:
    """A title per column, then a line per row, of one cell per column. The first `num_texts` columns keep to the left;
    the others hold figures, to the right."""
    rule = ["---"] * num_texts + ["---:"] * (len(head) - num_texts)
    lines = [head, rule, *rows]
    assert all(len(cells) == len(head) for cells in lines)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
