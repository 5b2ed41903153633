"""How many tokens one call of the device draws, so that calls are few and nobody waits long."""

MOST_STEPS = 16
QUICK_SECONDS, CALM_SECONDS = 0.01, 0.05
REMEMBERED = 0.8  # share of the old estimate in the new one


class Pace:
    """Chooses the steps of the next call from the time that a step took.

    A call on the device cannot be left early: what arrives meanwhile waits for its end. With a slow
    model every call is one token; with a fast one, several tokens share the cost of a call.
    """

    def __init__(self) -> None:
        self._step_seconds = 0.0

    def steps(self, remaining: int, is_hurried: bool) -> int:
        """Steps of the next call: at most `remaining`, which no sequence needs more than.

        `is_hurried` says that a sequence could begin right after the call.
        """
        if not self._step_seconds:
            return 1
        allowed = (QUICK_SECONDS if is_hurried else CALM_SECONDS) / self._step_seconds
        return max(1, min(int(allowed), MOST_STEPS, remaining))

    def took(self, steps: int, seconds: float) -> None:
        """Learn from a call."""
        latest = seconds / steps
        old = self._step_seconds or latest
        self._step_seconds = REMEMBERED * old + (1 - REMEMBERED) * latest
