"""A robot's control loop around `qttdm serve`: at each tick an action, or the robot's own safe one.

python robot.py [TICKS]    replace `read`, `send` and `safe` by your robot's; as it is, it sees zeros and moves nothing
"""

import sys
import time

import numpy as np

from qttdm.planner_service.serving.client import Client, DisconnectedError

PORT, PERIOD_S = 7747, 0.1  # PERIOD_S: where the service does not know it
SHARE = 0.7  # of the period in which the answer is wanted; the rest is for the way there and back
MOST_MISSED = 3  # ticks in a row without an answer in time; then the robot stops


def read(info):
    """Read the sensors, in the order of info["observation_parts"] and in the units trained with."""
    return np.zeros(info["observations"]["observations"]["shape"], np.float32)


def send(action):
    """Hand it to the motors; a limit of theirs holds here, whatever the policy says."""


def safe(info):
    """The action that brings this robot to rest: here the one nearest to 0."""
    return np.clip(0.0, info["action_bounds"]["low"], info["action_bounds"]["high"])


ticks = int(sys.argv[1]) if len(sys.argv) > 1 else 50
with Client(port=PORT) as client:
    info, step, missed, late = client.info, 0, 0, 0
    period = info["decision_seconds"] or PERIOD_S
    client.timeout_s = period  # no call may take longer than a tick: it hangs up then
    (episode,) = client.begin([0])
    try:
        for _ in range(ticks):
            tick = time.monotonic()
            request = {"episode": episode, "step": step, "observations": read(info)}
            result = client.act([{**request, "deadline_ms": 1e3 * SHARE * period, "anytime": True}])[0]
            step += "action" in result  # a refusal leaves the episode where it was
            good = "action" in result and time.monotonic() - tick < period
            missed, late = (0, late) if good else (missed + 1, late + 1)
            if missed == MOST_MISSED:
                break
            send(result["action"] if good else safe(info))
            time.sleep(max(0.0, tick + period - time.monotonic()))
    except DisconnectedError as error:
        print(error)
    finally:
        send(safe(info))
print(f"{step} decisions, {late} ticks without one in time; stopped")
