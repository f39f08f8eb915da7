"""Damage at rest between runs: a handful here, thousands by `python tests/chaos/damage.py`."""

from chaos.damage import main, run_cases

# Together most kinds of damage, and drivers that are killed, or frozen beside others.
HANDFUL = range(10)


def test_a_handful_of_damaged_outputs() -> None:
    results = run_cases(HANDFUL)
    assert [str(result) for result in results if result.problems] == []
    stories = " ".join(line for result in results for line in result.story)
    for what in ("flip", "cut", "zero", "delete", "edit", "exchange", "stranger", "died", "beside", "earlier version"):
        assert what in stories, what
    assert "refused: " in stories


def test_the_command_tells_a_case() -> None:
    assert main(["--seed", "3"]) == 0
