"""Signals and time end a training after a step, and what is finished is not interrupted."""

import os
import signal
import time

import pytest

from labelmill.pipeline.process.interruption import Interrupted
from labelmill.pipeline.training.stop import Stop, stop_on_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_step_end(number: signal.Signals) -> None:
    steps = []
    with pytest.raises(Interrupted, match=number.name), stop_on_signals() as stop:
        while not stop.is_due:
            if len(steps) == 2:
                os.kill(os.getpid(), number)
            steps.append("taken")
    assert len(steps) == 3


def test_a_signal_in_the_last_step_interrupts_nothing() -> None:
    with stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        stop.is_finished = stop.is_due
    assert stop.is_finished


def test_time_runs_out() -> None:
    with stop_on_signals(max_seconds=0.05) as stop:
        assert not stop.is_due
        time.sleep(0.06)
        assert stop.is_due
    assert not Stop().is_due
