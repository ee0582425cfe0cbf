"""How long steps take, evaluations between them included."""

from worker.pace import Pace


def test_the_mean_is_over_the_clock_between_the_last_hundred_steps() -> None:
    now = 0.0
    pace = Pace(clock=lambda: now)
    assert pace.seconds_a_step == 0.0
    pace.step(2.0)
    assert pace.seconds_a_step == 2.0  # nothing else is known
    for _ in range(4):
        now += 5.0  # two for the step, three for what lies between
        pace.step(2.0)
    assert pace.seconds_a_step == 5.0
    for _ in range(100):
        now += 1.0
        pace.step(1.0)
    assert pace.seconds_a_step == 1.0
