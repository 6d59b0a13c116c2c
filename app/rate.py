"""A rate limit for each session: as often as it likes at first, then as fast as its allowance refills."""

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable


class Rate:
    """An allowance per session of `a_minute`, full at first and refilled evenly; None: no limit.

    A session is a browser tab, so this keeps one visitor from crowding out the others by haste or by mistake. Whoever
    makes up new sessions is held by the queue.

    Args:
        what: what is counted, for the sentence, e.g. `runs`.
        most: sessions remembered; the allowance of one forgotten is full again.
        clock: seconds, never going back.
    """

    def __init__(
        self, a_minute: int | None, what: str, *, most: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.a_minute, self.what, self.most, self.clock = a_minute, what, most, clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # allowance, and when it was that
        self._lock = threading.Lock()

    def take(self, session: str) -> None:
        """Counts one. Raises ValueError that says how many seconds to wait where the allowance is used up."""
        if self.a_minute is None:
            return
        with self._lock:
            now = self.clock()
            left, before = self._left.get(session, (float(self.a_minute), now))
            left = min(float(self.a_minute), left + (now - before) * self.a_minute / 60)
            allowed = left >= 1
            self._left[session] = (left - allowed, now)
            self._left.move_to_end(session)
            # one that is full again is as if it had never been asked for
            while len(self._left) > self.most or now - next(iter(self._left.values()))[1] >= 60:
                self._left.popitem(last=False)
        if not allowed:
            seconds = max(1, math.ceil((1 - left) * 60 / self.a_minute))
            raise ValueError(
                f"That is more than {self.a_minute} {self.what} in a minute; wait {seconds} "
                f"{'second' if seconds == 1 else 'seconds'} and try again."
            )
