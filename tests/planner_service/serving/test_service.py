"""The service in one event loop: the answers of the local policy whatever the company, and no request without one."""

import asyncio
import dataclasses
import re
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from qttdm.common.weights import Weights
from qttdm.planner_service.planners.mppi import MPPI, MPPIConfig
from qttdm.planner_service.policies.lockstep import Lockstep
from qttdm.planner_service.policies.planning import PlanningPolicy, on_device
from qttdm.planner_service.serving.messages import REFUSALS, Answer, Refusal, Request, ServiceError
from qttdm.planner_service.serving.service import PlannerService, ServiceConfig
from tests.fakes import FakeDynamics, FakeValue, greedy_policy, planning_policy, randomise, tiny_data, tiny_qt, tiny_tdm

CPU = torch.device("cpu")
SMALL = {"samples": 12, "elites": 4, "qt_samples": 3, "iterations": 3, "horizon": 2}


def mpc(**config):
    return planning_policy(MPPIConfig(**{**SMALL, **config}), tiny_tdm(0), tiny_qt(1))


def greedy(**_):
    return greedy_policy(tiny_qt(1))


POLICIES = {"mpc": mpc, "keeps elites": lambda: mpc(keep_elites=2), "greedy": greedy}


def numbers(seed):
    return np.random.default_rng(seed).standard_normal(3).astype(np.float32)


def observation(seed):
    return {"observations": numbers(seed)}


class GatedPolicy(PlanningPolicy):
    """Waits in each batch until it may go on; notes how many were in it, and the deadline."""

    def __init__(self):
        usual = mpc()
        super().__init__(usual.planner, usual.networks, usual.data, CPU)
        self.gate, self.batches = threading.Event(), []

    def decide(self, episodes, observations, deadline=None):
        self.batches.append((len(episodes), deadline))
        assert self.gate.wait(20)
        return super().decide(episodes, observations, deadline)


class FunctionPolicy(PlanningPolicy):
    """Plans with functions for networks."""

    def __init__(self, planner):
        super().__init__(planner, nn.ModuleDict(), tiny_data(), CPU)


def service(policy=None, **config):
    return PlannerService(ServiceConfig(**config), policy or mpc(), tiny_data())


def answered(outcomes):
    assert all(isinstance(outcome, Answer) for outcome in outcomes), outcomes
    return outcomes


async def until(condition):
    """Let the others run until it holds."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


def local_actions(policy, seed, exploration, decisions):
    """What the policy itself does alone, [decisions, N]."""
    episodes = Lockstep(policy, [seed], exploration)
    return np.stack([episodes.act(batch(observation(1000 * seed + step)))[0] for step in range(decisions)])


def batch(observations):
    """Of one environment."""
    return {name: array[None] for name, array in observations.items()}


async def one_by_one(service, seed, exploration, decisions, pause):
    """A client's actions [decisions, N], with its own rhythm."""
    (episode,) = await service.begin([seed], exploration)
    actions, rng = [], np.random.default_rng(seed)
    for step in range(decisions):
        if pause:
            await asyncio.sleep(rng.uniform(0, 0.004))
        (answer,) = answered(await service.act([Request(episode, step, observation(1000 * seed + step))]))
        actions.append(answer.action)
    await service.end([episode])
    return np.stack(actions)


class TestSameAnswers:
    """1e-5: a batch's matrix products round differently from those of one row alone. Beyond that, a sample whose value
    such a rounding carries over the edge between two bins is one bin further: rare, and a bin's width."""

    @pytest.mark.parametrize("name", POLICIES)
    @pytest.mark.parametrize("pause", [False, True])
    def test_a_client_gets_the_local_policys_actions_whatever_the_company(self, name, pause):
        clients = [(seed, [0.0, 0.5][seed % 2], 2 + 2 * (seed % 4)) for seed in range(9)]

        async def run():
            serving = service(POLICIES[name](), max_batch=5)
            actions = await asyncio.gather(*(one_by_one(serving, *client, pause) for client in clients))
            return actions, serving.status()

        actions, status = asyncio.run(run())
        assert status["answers"] == sum(decisions for *_, decisions in clients)
        assert status["answers"] > 1.5 * status["batches"]  # they did share
        for client, got in zip(clients, actions, strict=True):
            assert np.allclose(got, local_actions(POLICIES[name](), *client), atol=1e-5), client

    def test_exactly_where_products_do_not_round(self):
        """With dynamics computed element by element, which nobody's company can change: to the bit."""

        def step(states, actions):
            states = 0.9 * states + 0.1 * torch.nn.functional.pad(actions, (0, 1))
            return states, -(states[:, 0] ** 2) - states[:, 1] ** 2, None

        def fake():
            dynamics, value = FakeDynamics(step, 2, 21), FakeValue(lambda s: -(s[:, 0] ** 2), 2, 21)
            return FunctionPolicy(MPPI(MPPIConfig(**SMALL), 0.95, 2, dynamics, value))

        clients = [(seed, [0.0, 0.5][seed % 2], 6) for seed in range(9)]

        async def run():
            serving = service(fake(), max_batch=4)
            return await asyncio.gather(*(one_by_one(serving, *client, True) for client in clients))

        for client, got in zip(clients, asyncio.run(run()), strict=True):
            assert np.array_equal(got, local_actions(fake(), *client))


class TestAnswers:
    def test_say_what_was_decided_with_what_and_how_long_it_took(self):
        async def run():
            serving = service()
            await serving.load(Weights.of(serving.policy.networks, version=7))
            (episode,) = await serving.begin([3])
            started = time.monotonic()
            (answer,) = await serving.act([Request(episode, 0, observation(0))])
            return answer, 1e3 * (time.monotonic() - started)

        answer, took = asyncio.run(run())
        policy = mpc()
        decisions = policy.decide([policy.start(3, 0.0)], batch(observation(0)))
        assert np.allclose(answer.action, decisions.actions[0], atol=1e-5)
        assert answer.action.dtype == np.float32
        assert answer.value == pytest.approx(decisions.values[0], abs=1e-4)
        assert (answer.weights_version, answer.iterations, answer.late) == (7, 3, False)
        assert answer.queue_ms >= 0 < answer.plan_ms
        assert answer.queue_ms + answer.plan_ms <= took

    def test_the_qts_value_is_that_of_the_greedy_agent(self):
        async def run():
            serving = service(greedy())
            (episode,) = await serving.begin([3])
            return await serving.act([Request(episode, 0, observation(0))])

        (answer,) = asyncio.run(run())
        want = tiny_qt(1).value(on_device(batch(observation(0)), CPU)).item()
        assert answer.value == pytest.approx(want, abs=1e-5)
        assert answer.iterations == 0

    def test_many_at_once_come_in_their_order(self):
        async def run():
            serving = service(max_batch=3)
            episodes = await serving.begin([0, 1, 2, 3, 4])
            requests = [Request(e, 0, observation(i)) for i, e in enumerate(episodes)]
            requests.insert(2, Request(99, 0, observation(0)))
            return await serving.act(requests)

        outcomes = asyncio.run(run())
        assert outcomes.pop(2).code == "unknown_episode"
        policy = mpc()
        for i, answer in enumerate(answered(outcomes)):
            assert np.allclose(answer.action, Lockstep(policy, [i], 0.0).act(batch(observation(i)))[0], atol=1e-5)

    def test_asked_again_the_answer_is_the_same_and_the_episode_does_not_move(self):
        async def run():
            policy = GatedPolicy()
            serving = service(policy)
            (episode,) = await serving.begin([3])
            impatient = asyncio.create_task(serving.act([Request(episode, 0, observation(0))]))
            await until(lambda: policy.batches)
            impatient.cancel()  # while it is planned: its client has gone, or given up waiting
            again = asyncio.create_task(serving.act([Request(episode, 0, observation(0))]))
            await asyncio.sleep(0.01)
            policy.gate.set()
            (first,) = await again
            (once_more,) = await serving.act([Request(episode, 0, observation(0))])
            (second,) = await serving.act([Request(episode, 1, observation(1))])
            return first, once_more, second, policy.batches

        first, once_more, second, batches = asyncio.run(run())
        assert once_more is first
        assert len(batches) == 2
        policy = Lockstep(mpc(), [3], 0.0)
        for step, answer in enumerate([first, second]):
            assert np.allclose(answer.action, policy.act(batch(observation(step)))[0], atol=1e-5)


class TestBatches:
    def sizes(self, waits, clients, **config):
        """Batch sizes when clients ask one after the other, `waits` seconds apart, of a service that is idle."""

        async def run():
            policy = GatedPolicy()
            policy.gate.set()
            serving = service(policy, **config)
            episodes = await serving.begin(list(range(clients)))
            tasks = []
            for i, wait in enumerate(waits):
                await asyncio.sleep(wait)
                tasks.append(asyncio.create_task(serving.act([Request(episodes[i], 0, observation(i))])))
            for task in tasks:
                answered(await task)
            return [size for size, _ in policy.batches]

        return asyncio.run(run())

    def test_closes_when_full(self):
        assert self.sizes([0] * 6, clients=100, max_batch=3, max_wait_ms=60_000) == [3, 3]

    def test_closes_when_the_first_has_waited_long_enough(self):
        assert self.sizes([0, 0, 0.5], clients=100, max_wait_ms=100) == [2, 1]

    def test_waits_for_nobody_when_all_are_there(self):
        assert self.sizes([0, 0.05, 0.05], clients=3, max_wait_ms=60_000) == [3]

    def test_waits_no_longer_when_those_it_waits_for_have_ended(self):
        async def run():
            serving = service(max_wait_ms=60_000)
            episode, *others = await serving.begin([0, 1, 2])
            waiting = asyncio.create_task(serving.act([Request(episode, 0, observation(0))]))
            await until(lambda: serving._queue)
            await serving.end(others)
            async with asyncio.timeout(20):
                answered(await waiting)

        asyncio.run(run())

    def test_a_call_that_is_cancelled_takes_no_answer_from_another(self):
        """Both asked for the same step, as a client does that has lost its connection."""

        async def run():
            policy = GatedPolicy()
            serving = service(policy, max_wait_ms=0)
            (episode,) = await serving.begin([0])
            gone, stays = (asyncio.create_task(serving.act([Request(episode, 0, observation(0))])) for _ in range(2))
            await until(lambda: policy.batches)
            gone.cancel()
            await asyncio.wait([gone])
            policy.gate.set()
            answered(await stays)
            assert gone.cancelled()

        asyncio.run(run())

    def test_what_comes_during_a_batch_is_the_next_one(self):
        async def run():
            policy = GatedPolicy()
            serving = service(policy, max_wait_ms=0)
            episodes = await serving.begin(list(range(9)))
            tasks = []
            for i, episode in enumerate(episodes):
                tasks.append(asyncio.create_task(serving.act([Request(episode, 0, observation(i))])))
                await until(lambda: policy.batches)
            policy.gate.set()
            for task in tasks:
                answered(await task)
            return [size for size, _ in policy.batches]

        assert asyncio.run(run()) == [1, 8]


class TestWeights:
    def test_are_swapped_between_batches_and_every_answer_says_which(self):
        """Under load, every answer is that of the version it names, to the decision."""
        snapshots = []
        for version in range(8):
            policy = greedy()
            with torch.random.fork_rng():
                torch.manual_seed(version)
                randomise(policy.networks)
            snapshots.append(Weights.of(policy.networks, version))

        async def client(serving, seed, answers):
            (episode,) = await serving.begin([seed])
            for step in range(60):
                (answer,) = answered(await serving.act([Request(episode, step, observation(seed))]))
                answers.append((seed, answer))

        async def run():
            serving, answers = service(greedy(), max_wait_ms=0), []
            clients = [asyncio.create_task(client(serving, seed, answers)) for seed in range(6)]
            for i, weights in enumerate(snapshots[1:], start=1):
                await until(lambda i=i: len(answers) >= 40 * i)
                await serving.load(weights)
            await asyncio.gather(*clients)
            return answers

        serving_policy, answers = greedy(), asyncio.run(run())
        versions = [answer.weights_version for _, answer in answers]
        assert len(answers) == 360
        assert len(set(versions)) == 8
        policies = {0: serving_policy}
        for version in set(versions) - {0}:
            policies[version] = greedy()
            policies[version].load(snapshots[version])
        for seed, answer in answers:
            policy = policies[answer.weights_version]
            decided = policy.decide([policy.start(0, 0.0)], batch(observation(seed)))
            assert np.array_equal(answer.action, decided.actions[0])
            assert answer.value == pytest.approx(decided.values[0], abs=1e-4)

    def test_older_ones_that_come_late_are_left(self):
        """Two who bring weights each find the ones in use older; which of them is first in the queue is chance."""

        async def run():
            policy = GatedPolicy()
            serving = service(policy)
            (episode,) = await serving.begin([3])
            asking = asyncio.create_task(serving.act([Request(episode, 0, observation(0))]))
            await until(lambda: policy.batches)
            loads = [asyncio.create_task(serving.load(Weights.of(policy.networks, version))) for version in (5, 4)]
            await asyncio.sleep(0.01)
            policy.gate.set()
            await asyncio.gather(asking, *loads)
            (answer,) = answered(await serving.act([Request(episode, 1, observation(1))]))
            return answer.weights_version

        assert asyncio.run(run()) == 5

    def test_damaged_ones_are_refused_and_the_old_ones_stay(self):
        async def run():
            serving = service()
            (episode,) = await serving.begin([3])
            weights = Weights.of(serving.policy.networks, version=7)
            with pytest.raises(ValueError, match="checksum"):
                await serving.load(dataclasses.replace(weights, checksum=weights.checksum ^ 1))
            return await serving.act([Request(episode, 0, observation(0))])

        (answer,) = answered(asyncio.run(run()))
        assert answer.weights_version == 0


def refusal(serving, *requests):
    """The one outcome of the last of these requests, each asked after the one before was answered."""

    async def run():
        for request in requests:
            (outcome,) = await serving.act([request])
        return outcome

    return run()


class TestRefusals:
    @pytest.mark.parametrize(
        ("bad", "words"),
        [
            (np.zeros(2, np.float32), r"observations: got \[2\] numbers, want \[3\]"),
            (np.zeros((3, 1), np.float32), r"got \[3, 1\] numbers, want \[3\]"),
            (np.zeros(3), "got float64 numbers, want float32"),
            (np.array([0, np.nan, 0], np.float32), "number 1 is nan"),
            (np.array([0, 0, -np.inf], np.float32), "number 2 is -inf"),
        ],
    )
    def test_bad_observations_cost_nobody_else_anything(self, bad, words):
        async def run():
            serving = service()
            episodes = await serving.begin([0, 1, 2])
            observations = [observation(0), {"observations": bad}, observation(2)]
            first = await serving.act([Request(e, 0, o) for e, o in zip(episodes, observations, strict=True)])
            second = await serving.act([Request(episodes[1], 0, observation(1))])
            return first, second

        (good, refused, also_good), (afterwards,) = asyncio.run(run())
        assert refused.code == "bad_observation"
        assert re.search(words, refused.message)
        policy = mpc()
        for i, answer in enumerate(answered([good, afterwards, also_good])):
            assert np.allclose(answer.action, Lockstep(policy, [i], 0.0).act(batch(observation(i)))[0], atol=1e-5)

    def test_steps_are_counted(self):
        async def run():
            serving = service()
            (episode,) = await serving.begin([3])
            early = await refusal(serving, Request(episode, 1, observation(0)))
            for step in range(3):
                answered(await serving.act([Request(episode, step, observation(0))]))
            return early, await refusal(serving, Request(episode, 1, observation(0)))

        early, old = asyncio.run(run())
        assert (early.code, early.message) == ("wrong_step", "got step 1, want 0")
        assert (old.code, old.message) == ("wrong_step", "got step 1, want 3")

    def test_what_ended_is_unknown(self):
        async def run():
            serving = service()
            episodes = await serving.begin([3, 4])
            await serving.end([episodes[0], 12345])
            outcomes = await serving.act([Request(e, 0, observation(0)) for e in episodes])
            return outcomes, serving.status()

        (ended, other), status = asyncio.run(run())
        assert ended.code == "unknown_episode"
        assert isinstance(other, Answer)
        assert status["episodes"] == 1

    def test_silent_clients_are_released_when_others_begin(self):
        async def run():
            serving = service(silence_s=60, max_episodes=2)
            talking, silent = await serving.begin([0, 1])
            with pytest.raises(ServiceError, match="busy: 2 episodes under way and 1 more, at most 2") as error:
                await serving.begin([2])
            for episode in serving._episodes.values():
                episode.seen -= 61
            answered(await serving.act([Request(talking, 0, observation(0))]))
            await serving.begin([2])
            answered(await serving.act([Request(talking, 1, observation(0))]))
            assert (await refusal(serving, Request(silent, 0, observation(0)))).code == "unknown_episode"
            return error.value.refusal, serving.status()

        refused, status = asyncio.run(run())
        assert refused.retry_ms > 0
        assert status["episodes"] == 2

    def test_a_full_queue_is_busy_at_once_and_says_when_to_come_again(self):
        async def run():
            policy = GatedPolicy()
            serving = service(policy, max_batch=2, max_queue=2, max_wait_ms=0)
            episodes = await serving.begin(list(range(6)))
            planned = asyncio.create_task(serving.act([Request(episodes[0], 0, observation(0))]))
            await until(lambda: policy.batches)
            others = asyncio.create_task(serving.act([Request(e, 0, observation(1)) for e in episodes[1:]]))
            async with asyncio.timeout(20):
                await until(lambda: serving._refused["busy"] == 3)  # long before anyone is answered
            policy.gate.set()
            answered(await planned)
            outcomes = await others
            retried = await serving.act([Request(episodes[5], 0, observation(1))])
            return outcomes, retried

        outcomes, retried = asyncio.run(run())
        answered(outcomes[:2])
        assert [outcome.code for outcome in outcomes[2:]] == ["busy"] * 3
        assert all(outcome.retry_ms >= 0 for outcome in outcomes[2:])
        answered(retried)

    def test_a_failed_batch_is_answered_and_the_next_one_planned(self):
        async def run():
            serving = service()
            (episode,) = await serving.begin([3])
            serving.policy.planner.plan = lambda *_: 1 / 0
            failed = await refusal(serving, Request(episode, 0, observation(0)))
            del serving.policy.planner.plan
            answered(await serving.act([Request(episode, 0, observation(0))]))
            return failed, serving.status()

        failed, status = asyncio.run(run())
        assert (failed.code, failed.message) == ("failed", "ZeroDivisionError: division by zero")
        assert status["refusals"] == {"failed": 1}

    def test_a_failed_batch_holds_up_nobody_who_waits_behind_it(self):
        async def run():
            policy = GatedPolicy()
            serving = service(policy, max_batch=1, max_wait_ms=0)
            first, second = await serving.begin([0, 1])
            failing = asyncio.create_task(serving.act([Request(first, 0, observation(0))]))
            await until(lambda: policy.batches)
            behind = asyncio.create_task(serving.act([Request(second, 0, observation(1))]))
            await until(lambda: serving._queue)
            plan, policy.planner.plan = policy.planner.plan, lambda *_: 1 / 0
            policy.gate.set()
            (failed,) = await failing
            policy.planner.plan = plan
            return failed, await behind

        failed, behind = asyncio.run(run())
        assert failed.code == "failed"
        assert isinstance(behind[0], Answer) or behind[0].message == "ZeroDivisionError: division by zero"

    def test_what_overflows_gets_no_action_and_spoils_nothing(self):
        """Finite in itself; the networks' outcome is not."""

        async def run():
            serving = service()
            episodes = await serving.begin([0, 1])
            huge = {"observations": np.full(3, 3e38, np.float32)}
            outcomes = await serving.act(
                [Request(e, 0, o) for e, o in zip(episodes, [huge, observation(1)], strict=True)]
            )
            afterwards = await serving.act([Request(episodes[0], 0, observation(0))])
            return outcomes, afterwards

        (overflowed, good), afterwards = asyncio.run(run())
        assert (overflowed.code, overflowed.message) == ("failed", "the plan for this observation is not finite")
        policy = Lockstep(mpc(), [1], 0.0)
        assert np.allclose(good.action, policy.act(batch(observation(1)))[0], atol=1e-5)
        answered(afterwards)

    def test_every_code_is_listed(self):
        source = Path(sys.modules[PlannerService.__module__].__file__).read_text()
        assert set(re.findall(r'_refuse\(\s*"(\w+)"', source)) == set(REFUSALS)


class TestDeadlines:
    def test_missed_in_the_queue_it_is_late_at_once_and_nothing_has_happened(self):
        async def run():
            policy = GatedPolicy()
            serving = service(policy, max_wait_ms=0)
            first, second = await serving.begin([0, 1])
            planned = asyncio.create_task(serving.act([Request(first, 0, observation(0))]))
            await until(lambda: policy.batches)
            late = await refusal(serving, Request(second, 0, observation(1), deadline_ms=30))
            policy.gate.set()  # only now: it did not have to wait for the batch
            answered(await planned)
            return late, await serving.act([Request(second, 0, observation(1), deadline_ms=60_000)])

        late, afterwards = asyncio.run(run())
        assert (late.code, late.message) == ("late", "waited 30 ms")
        (answer,) = answered(afterwards)
        assert not answer.late
        policy = Lockstep(mpc(), [1], 0.0)
        assert np.allclose(answer.action, policy.act(batch(observation(1)))[0], atol=1e-5)

    def test_missed_while_it_waits_for_company_it_is_late_too(self):
        async def run():
            serving = service(max_wait_ms=60_000)
            first, _ = await serving.begin([0, 1])
            serving._plan_seconds = -10.0  # so that it does not give up waiting in time
            late = await refusal(serving, Request(first, 0, observation(0), deadline_ms=30))
            serving._plan_seconds = 0.0
            await serving.end([_])
            return late, await serving.act([Request(first, 0, observation(0))])

        late, afterwards = asyncio.run(run())
        assert late.code == "late"
        answered(afterwards)

    def test_met_it_is_forgotten(self):
        """A client may ask for one in a year with each request: nothing of that stays."""

        async def run():
            serving = service()
            (episode,) = await serving.begin([0])
            for step in range(3):
                answered(await serving.act([Request(episode, step, observation(step), deadline_ms=3e10)]))
            return [handle for handle in asyncio.get_running_loop()._scheduled if not handle.cancelled()]

        assert all(handle._callback.__name__ != "_expire" for handle in asyncio.run(run()))

    def test_missed_while_planning_it_is_answered_and_marked(self):
        async def run():
            policy = GatedPolicy()
            serving = service(policy, max_wait_ms=0)
            (episode,) = await serving.begin([0])
            request = asyncio.create_task(serving.act([Request(episode, 0, observation(0), deadline_ms=30)]))
            await until(lambda: policy.batches)
            await asyncio.sleep(0.05)
            policy.gate.set()
            return await request

        (answer,) = answered(asyncio.run(run()))
        assert answer.late
        assert answer.iterations == 3

    def test_company_is_not_waited_for_beyond_a_deadline(self):
        async def run():
            serving = service(max_wait_ms=60_000)
            episode, _ = await serving.begin([0, 1])
            serving._plan_seconds = 5.0  # as if the last batch had taken so long
            return await serving.act([Request(episode, 0, observation(0), deadline_ms=6_000)])

        (answer,) = answered(asyncio.run(run()))
        assert answer.queue_ms < 6_000

    def test_anytime_is_the_best_of_as_many_iterations_as_fit(self):
        async def run():
            serving = service()
            (episode,) = await serving.begin([0])
            outcomes = []
            for step, left in enumerate([60_000, None, 0.3]):
                request = Request(episode, step, observation(step), deadline_ms=left, anytime=True)
                outcomes += await serving.act([request])
            return outcomes

        whole, without, hurried = asyncio.run(run())
        assert whole.iterations == without.iterations == 3
        assert hurried.code == "late" if isinstance(hurried, Refusal) else hurried.iterations < 3

    def test_a_hurried_client_hurries_nobody_who_did_not_ask_for_it(self):
        async def run():
            policy = GatedPolicy()
            serving = service(policy, max_wait_ms=0)
            episodes = await serving.begin(list(range(5)))
            tasks = [asyncio.create_task(serving.act([Request(episodes[0], 0, observation(0))]))]
            await until(lambda: policy.batches)
            options = [
                {},
                {"deadline_ms": 9e4, "anytime": True},
                {"anytime": True},
                {"deadline_ms": 6e4, "anytime": True},
            ]
            for i, option in enumerate(options, start=1):
                tasks.append(asyncio.create_task(serving.act([Request(episodes[i], 0, observation(i), **option)])))
            await until(lambda: len(serving._queue) == 4)
            now = time.monotonic()
            policy.gate.set()
            for task in tasks:
                answered(await task)
            return policy.batches, now

        batches, now = asyncio.run(run())
        assert [size for size, _ in batches] == [1, 2, 2]
        assert [deadline is not None for _, deadline in batches] == [False, False, True]
        assert batches[2][1] - now == pytest.approx(60, abs=5)  # the earlier of the two


class TestStop:
    def test_who_waits_is_answered_and_who_comes_is_refused(self):
        async def run():
            policy = GatedPolicy()
            serving = service(policy, max_batch=1, max_wait_ms=0)
            episodes = await serving.begin([0, 1, 2])
            waiting = asyncio.create_task(serving.act([Request(e, 0, observation(0)) for e in episodes[:2]]))
            await until(lambda: policy.batches)
            stopping = asyncio.create_task(serving.stop())
            await asyncio.sleep(0)
            with pytest.raises(ServiceError, match="stopping"):
                await serving.begin([3])
            refused = await refusal(serving, Request(episodes[2], 0, observation(0)))
            policy.gate.set()
            await stopping
            return await waiting, refused

        outcomes, refused = asyncio.run(run())
        assert len(answered(outcomes)) == 2
        assert refused.code == "stopping"

    def test_who_waits_for_company_waits_no_longer(self):
        async def run():
            serving = service(max_wait_ms=60_000)
            first, _ = await serving.begin([0, 1])
            waiting = asyncio.create_task(serving.act([Request(first, 0, observation(0))]))
            await until(lambda: serving._queue)
            async with asyncio.timeout(20):
                await serving.stop()
            return await waiting

        answered(asyncio.run(run()))


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="max_queue=3 is less than max_batch=4"):
        ServiceConfig(max_batch=4, max_queue=3)
