"""Damage at rest between runs: a handful here, thousands by `python tests/chaos/damage.py`."""

from chaos.damage import run_cases

# Together every kind of damage but a swap, and drivers that are killed, or frozen beside others.
HANDFUL = (0, 4, 5, 8, 9, 10, 12)


def test_a_handful_of_damaged_outputs() -> None:
    results = run_cases(HANDFUL)
    assert [str(result) for result in results if result.problems] == []
    stories = " ".join(line for result in results for line in result.story)
    for what in ("flip", "cut", "zero", "delete", "edit", "exchange", "stranger", "died", "beside", "earlier version"):
        assert what in stories, what
    assert "refused: " in stories
