"""`qttdm dream`: what is drawn is what the world model expects."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from qttdm.common.metrics.lines import read_metrics
from qttdm.common.models.latent import modes
from qttdm.common.run_dir import RunDir
from qttdm.deploy.cli.main import main
from qttdm.deploy.runs.dream import imagine_episode, imagine_with, world_model
from qttdm.deploy.runs.local import new_run
from qttdm.deploy.runs.trained import TrainedAgent
from qttdm.deploy.screens.dream import png_of
from qttdm.deploy.screens.progress import Progress
from tests.fakes import randomise, tiny_config


def saved(folder, *more, agent="twm", task="minatar/breakout"):
    config = tiny_config("env={episode_steps: 40, action_repeat: 1}", *more, agent=agent, task=task)
    run = new_run(config, RunDir.create(folder))
    randomise(run.learner.networks, std=0.1)
    run.learner.updates = 1
    run.loop.store.save(10, run.learner.state(), {"counters": {}}, {})
    run.close()
    return folder


def test_images_are_drawn_beside_what_was_imagined(tmp_path, capsys):
    run = saved(tmp_path / "run")
    assert main(["dream", str(run), "--steps", "3", "--at", "2"]) == 0
    said = capsys.readouterr().out
    assert "after step 2: mean error" in said
    assert (run / "dream.mp4").stat().st_size > 0
    strip = np.asarray(Image.open(run / "dream.png"))
    agent = TrainedAgent(run)
    dream = imagine_episode(agent, 3, 2)
    steps = len(dream.real)
    assert strip.shape == (2 * 82, steps * 82, 3)
    cells = strip.reshape(2, 82, steps, 82, 3).transpose(0, 2, 1, 3, 4)[:, :, 1:-1:8, 1:-1:8]
    white = dream.real.any(axis=-1)
    assert np.array_equal(cells[0].any(axis=-1), white)  # each cell of the game that holds something has a colour
    assert not np.array_equal(cells[0], cells[1])


def test_the_first_imagined_is_what_the_last_real_one_decodes_to(tmp_path):
    run = saved(tmp_path / "run", "twm.stack=1", task="gym/Pendulum-v1")
    agent = TrainedAgent(run)
    dream, world = imagine_episode(agent, 5, None), world_model(agent)
    assert dream.start == 4  # the window
    assert dream.real.shape == dream.imagined.shape == (6, 3)
    assert dream.real_rewards.shape == dream.imagined_rewards.shape == (5,)
    with torch.no_grad():
        latent = modes(world.network(torch.from_numpy(dream.real[:1]))).flatten(-2)
        decoded = world.network.scale.undo(world.decoder(latent))
    np.testing.assert_allclose(dream.imagined[0], decoded[0].numpy(), rtol=1e-4, atol=1e-5)
    assert main(["dream", str(run)]) == 0
    assert (run / "dream.png").stat().st_size > 0
    assert not (run / "dream.mp4").exists()


def test_what_cannot_be_imagined_is_one_line(tmp_path, capsys):
    run = saved(tmp_path / "run", task="gym/Pendulum-v1")
    assert main(["dream", str(run), "--at", "40"]) == 2
    assert capsys.readouterr().err == "qttdm: --at 40: the episode has 40 steps; want from 1 to 39\n"
    assert main(["export", str(run), "--format", "run", "--out", str(tmp_path / "small")]) == 0
    assert main(["dream", str(tmp_path / "small")]) == 2
    assert "holds only what acting needs; want the run that it was made of" in capsys.readouterr().err
    other = saved(tmp_path / "other", agent="qt-tdm", task="gym/Pendulum-v1")
    assert main(["dream", str(other)]) == 2
    assert "agent=qt-tdm has no world model that decodes; want a run of twm" in capsys.readouterr().err


def trained(folder, task, *more):
    """A run with an evaluation at 40 and at 80 steps, and one of its last weights."""
    own = (
        "env={episode_steps: 20, action_repeat: 1}",
        "training={env_steps: 90, seed_decisions: 10, eval_every: 40, checkpoint_every: 1000, eval_episodes: 2}",
    )
    run = new_run(tiny_config(*own, *more, agent="twm", task=task), RunDir.create(folder))
    run.train(Progress(90, console=Console(file=io.StringIO())))
    run.close()
    measured = [{k: v for k, v in line.items() if k in COUNTED} for line in read_metrics(RunDir(folder).metrics_path)]
    return measured, run


COUNTED = {"kind", "env_steps", "updates", "episode_returns", "loss_actor", "loss_latents"}


@pytest.mark.parametrize(("task", "size"), [("minatar/breakout", (82 * 2, 82)), ("gym/Pendulum-v1", (220, 330))])
def test_each_evaluation_goes_to_tensorboard_with_a_picture(tmp_path, task, size):
    """And what is learned is the same with and without."""
    stack = "twm.stack=1"
    with_it, run = trained(tmp_path / "on", task, stack, "sinks.tensorboard=true")
    events = EventAccumulator(str(tmp_path / "on" / "tensorboard"))
    events.Reload()
    pictures = events.Images("eval/dream")
    assert [p.step for p in pictures] == [line["env_steps"] for line in with_it if line["kind"] == "eval"]
    assert len(pictures) >= 2
    shown = np.asarray(Image.open(io.BytesIO(pictures[-1].encoded_image_string)))
    assert shown.shape[:2] == (pictures[-1].height, pictures[-1].width)
    assert shown.shape[0] == size[0]
    assert shown.shape[1] % size[1] == 0
    dream = imagine_with(run.learner, run.evaluator.first, run.agent.data.stack, run.config.seed)
    again = np.asarray(Image.open(io.BytesIO(png_of(dream))))
    assert np.array_equal(shown, again), "of the newest evaluation, by the weights that were evaluated"
    assert all(network.training for network in run.learner.networks.values())
    without, _ = trained(tmp_path / "off", task, stack, "sinks.tensorboard=false")
    assert not (tmp_path / "off" / "tensorboard").exists()
    assert with_it == without


@pytest.mark.parametrize("stack", [1, 3])
def test_images_are_stacked_as_replay_does(stack):
    from qttdm.deploy.runs.dream import stacked

    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 1), np.uint8)
    got = stacked(images, stack)
    assert got.shape == (5, 2, 2, stack)
    assert got[:, 0, 0].tolist() == [[max(0, t - back) for back in range(stack - 1, -1, -1)] for t in range(5)]
