"""The generalist: learns from bodies of different sizes, acts on one that it has not seen, goes on after a stop."""

import json
import shutil
from contextlib import closing

import numpy as np
import pytest
import torch

from qttdm.common.config import load_config
from qttdm.common.contracts import TaskSpec
from qttdm.common.episode import Episode
from qttdm.common.run_dir import RunDir
from qttdm.deploy.agents.generalist import Generalist, GeneralistConfig
from qttdm.deploy.cli.main import main
from qttdm.deploy.configs.run_config import RunConfig, preset_path
from qttdm.deploy.runs.local import open_run
from qttdm.deploy.screens.progress import Progress
from qttdm.replay.buffer import Replay, ReplayConfig
from qttdm.replay.datasets import write_dataset

UPDATES = 150
SMALL = "generalist.model={shared: true, embed_dim: 8, num_heads: 2, num_layers: 1, window: 4, bins: 9, dropout: 0.0}"
PLANNER = "generalist.planner={horizon: 2, samples: 4, proposals: 2, context: 2}"
TRAIN = ["offline", "--preset", "generalist-laptop", "--dataset", "some", "--task", "gym/FakePoint-v0", "--set", SMALL]
TRAIN += ["--set", PLANNER, "--set", "generalist.learner.batch_size=6", "--updates", "4"]
TRAIN += ["--set", "env={action_repeat: 8, episode_steps: 80}"]
TRAIN += ["--set", "training={eval_every: 2, eval_episodes: 2, checkpoint_every: 2}"]


@pytest.fixture
def some(tmp_path, monkeypatch):
    """A group of two data sets, of tasks with other lengths than each other's and than the toy task's."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))
    rng = np.random.default_rng(0)
    for name, obs_dim, action_dim in (("one", 5, 1), ("two", 2, 3)):
        arrays = rng.uniform(-1, 1, (9, obs_dim)), rng.uniform(-1, 1, (8, action_dim)), rng.uniform(0, 1, 8)
        episode = Episode(*(a.astype(np.float32) for a in arrays), terminated=False, env_steps=8, truncated=True)
        write_dataset(f"some/{name}-v0", [episode] * 3, TaskSpec(obs_dim, action_dim, 1, 8, False, name=f"toy/{name}"))
    return tmp_path


def test_it_learns_from_many_and_acts_on_another(some, capsys):
    run = some / "run"
    assert main([*TRAIN, "--run-dir", str(run)]) == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    updates = [line for line in lines if line["kind"] == "update"]
    assert updates[-1]["updates"] == 4
    assert updates[-1].keys() >= {"loss_observation_tokens", "loss_reward_token", "loss_action_tokens"}
    assert "some/two-v0: 24 decisions in 3 episodes" in capsys.readouterr().out
    assert main(["eval", str(run), "--episodes", "1"]) == 0
    # once more from its first checkpoint: the same batches, the same weights
    first, last = sorted((run / "checkpoints").iterdir())[:2]
    want = (last / "tensors.safetensors").read_bytes()
    for folder in sorted((run / "checkpoints").iterdir())[1:]:
        shutil.rmtree(folder)
    with closing(open_run(RunDir.open(run))) as again, Progress(4, None) as progress:
        again.train(progress)
    assert (sorted((run / "checkpoints").iterdir())[1] / "tensors.safetensors").read_bytes() == want
    assert first.exists()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (
            ["--agent", "qt"],
            "training.dataset=some is a group of data sets, and qt learns from one; want one of them, such as some/",
        ),
        (["--set", "training.shares={some/three-v0: 2.0}"], "there is no data set 'some/three-v0'"),
        (["--set", "training.env_steps=100"], "learns from data sets alone"),
        (["--set", "generalist.model.most_numbers=1"], "model.most_numbers=1"),
    ],
)
def test_what_does_not_fit_is_one_line(some, capsys, more, says):
    words = [w for w in TRAIN if not (more[0] == "--agent" and w.startswith("generalist."))]
    if more[0] == "--agent":
        words = ["offline", "--preset", "debug", "--agent", "qt", "--dataset", "some", "--task", "gym/FakePoint-v0"]
        more = ["--set", "training={env_steps: 0, offline_updates: 4}"]
    assert main([*words, *more, "--run-dir", str(some / "run")]) == 2
    assert says in (err := capsys.readouterr().err)
    assert (err.count("\n"), (some / "run").exists()) == (1, False)


def test_it_identifies_a_system_from_its_history():
    """Of x' = d - x, d drawn for each episode, the next x is known once two have been seen, and not before."""
    model = {"shared": True, "embed_dim": 32, "num_heads": 2, "num_layers": 2, "dropout": 0.0, "window": 4, "bins": 16}
    learning = {"batch_size": 64, "sequence": {"learning_rate": 5e-3, "action_weight": 0.0, "reward_weight": 0.0}}
    settings = GeneralistConfig.model_validate(
        {"model": model | {"tokens": "uniform"}, "planner": {"horizon": 1, "context": 3}, "learner": learning}
    )
    agent = Generalist(settings, TaskSpec(1, 1, 1, 6, False))
    rng, replay = np.random.default_rng(0), Replay(ReplayConfig(capacity=6_000), agent.data, 0)
    for number in range(1_000):
        first, other = rng.uniform(-1, 1, 2)
        seen = np.array([first, other] * 3 + [first], np.float32)[:, None]  # d = first + other
        nothing = np.zeros((6, 1), np.float32)
        replay.add(Episode(seen, nothing, nothing[:, 0], False, 6, number=number))
    torch.manual_seed(0)
    learner = agent.learner(torch.device("cpu"), UPDATES, False)
    learner.prepare(iter(lambda: replay.sample(64), None))
    for _ in range(UPDATES):
        learner.update(replay.sample(64))
    part, batch = learner.parts[0], {n: torch.from_numpy(array) for n, array in replay.sample(1_000).items()}
    whole = {name: array[batch["mask"].all(dim=1)] for name, array in batch.items()}
    targets = part.targets(whole)
    with torch.no_grad():
        logits, _ = part.network.eval()(targets.bins)
    slots = part.network.layout.slots
    predicted = part.network.tokens.expectation(logits[:, slots - 1 :: slots].softmax(dim=-1), 0)  # o_2, o_3, ..
    errors = (predicted - whole["observations"][:, 2:, 0]).square().mean(dim=0).sqrt()
    assert errors[0] > 0.4, errors
    assert errors[1:].max() < 0.25, errors


def test_the_paper_s_preset_has_the_published_size():
    config = load_config(RunConfig, preset_path("generalist-paper"))
    agent = config.make_agent(TaskSpec(24, 6, 1, 1000, terminates=False))  # a walker
    model = agent.policy(torch.device("cpu"), bfloat16=False).networks
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(77e6, rel=0.01)
