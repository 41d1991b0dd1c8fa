"""Dashboard 1: is it learning, is anything stuck, when will it be done, is this seed worse than that one?"""

from __future__ import annotations

from typing import Any

from qttdm.deploy.monitoring.grafana.panels import GREEN, ORANGE, RED, board, distribution, lines, number, of, rows

SEED = "run, task, seed"


def each(query: str) -> str:
    """One value for each seed."""
    return f"max by ({SEED}) ({query})"


DONE = f"{of('qttdm_env_steps_total')} / {of('qttdm_target_env_steps')}"
LEFT = f"{of('qttdm_run_seconds')} * ({of('qttdm_target_env_steps')} / ({of('qttdm_env_steps_total')} > 0) - 1)"
ENDED = of("qttdm_episode_outcomes_total", outcome="~success|failure")
SUCCEEDED = of("qttdm_episode_outcomes_total", outcome="success")


def training() -> Any:
    """The dashboard."""
    well = [
        number(
            "Seeds",
            "How many seeds are running, have finished, and have failed. A failed one says why in its failure.txt.",
            {state: f"sum({of('qttdm_seed_state', state=state)})" for state in ("running", "finished", "failed")},
            "none",
            width=4,
        ),
        number(
            "Progress",
            "Environment steps collected, of those that all chosen seeds are to collect.",
            f"sum({of('qttdm_env_steps_total')}) / sum({of('qttdm_target_env_steps')})",
            "percentunit",
        ),
        number(
            "Time left",
            "Until the slowest seed is done, if it goes on as it has gone so far.",
            f"max({LEFT})",
            "s",
            decimals=1,
        ),
        number(
            "Evaluation return",
            "Newest evaluation, mean over seeds; the line behind it is how that changed.",
            f"avg({of('qttdm_evaluation_return')})",
            "short",
            width=4,
        ),
        number(
            "Success",
            "Share of successes in the newest evaluation, mean over seeds; none where the task defines no success.",
            f"avg({of('qttdm_evaluation_success')})",
            "percentunit",
        ),
        number(
            "Since last progress",
            "Since the last update was made or episode heard of, of the seed for which that is longest. "
            "Orange after 2 minutes, red after 10.",
            f"max({of('qttdm_progress_age_seconds')})",
            "s",
            {120: ORANGE, 600: RED},
        ),
        number(
            "Silent processes",
            "That have not reported for 30 s although their run goes on: dead, hung, or cut off.",
            f"sum(1 - {of('qttdm_process_up')})",
            "none",
            {1: RED},
            width=2,
        ),
        number(
            "Alerts",
            "Firing now, of this run or of the cluster; docs/operations.md says what to do about each.",
            'count(ALERTS{alertstate="firing",run=~"$run|"}) or vector(0)',
            "none",
            {1: RED},
            width=2,
        ),
    ]
    learning = [
        lines(
            "Evaluation return, each seed",
            "Mean return of the newest evaluation's episodes, without exploration.",
            {"seed {{seed}}": each(of("qttdm_evaluation_return"))},
            "short",
            width=12,
        ),
        lines(
            "Evaluation return, all seeds",
            "Mean over seeds, between the lowest and the highest seed.",
            {
                legend: f"{how}({of('qttdm_evaluation_return')})"
                for legend, how in {"lowest": "min", "mean": "avg", "highest": "max"}.items()
            },
            "short",
            width=12,
            between=("lowest", "highest"),
        ),
        distribution(
            "Return of training episodes",
            "How many episodes ended with which return, exploration included. It should climb and narrow.",
            "qttdm_episode_return",
            "short",
            width=12,
        ),
        lines(
            "Success",
            "Share of successes: in the newest evaluation, and of the training episodes of the last ten minutes. Empty "
            "where the task defines no success.",
            {
                "evaluation, seed {{seed}}": each(of("qttdm_evaluation_success")),
                "training, seed {{seed}}": f"sum by ({SEED}) (increase({SUCCEEDED}[10m])) / "
                f"sum by ({SEED}) (increase({ENDED}[10m]))",
            },
            "percentunit",
            width=12,
            maximum=1,
        ),
    ]
    seeds = [
        rows(
            "Seeds side by side",
            "One row for each seed, as of now. A seed whose return is low while its losses and pace are like the "
            "others' is unlucky; one whose pace or restarts differ has a problem of its own.",
            {
                "is": (f"max by ({SEED}, state) ({of('qttdm_seed_state')} == 1)", "none", None),
                "steps": (each(of("qttdm_env_steps_total")), "short", None),
                "done": (each(DONE), "percentunit", None),
                "left": (each(LEFT), "s", None),
                "evaluation": (each(of("qttdm_evaluation_return")), "short", None),
                "success": (each(of("qttdm_evaluation_success")), "percentunit", None),
                "last return": (each(of("qttdm_episode_return_last")), "short", None),
                "steps/s": (f"sum by ({SEED}) (rate({of('qttdm_env_steps_total')}[5m]))", "short", None),
                "updates/s": (f"sum by ({SEED}) (rate({of('qttdm_updates_total')}[5m]))", "short", None),
                "pace": (
                    each(f"{of('qttdm_update_ratio')} / {of('qttdm_update_ratio_target')}"),
                    "percentunit",
                    {0: ORANGE, 0.9: GREEN},
                ),
                "restarts": (f"sum by ({SEED}) ({of('qttdm_process_restarts_total')})", "none", {1: ORANGE, 10: RED}),
                "failures": (f"sum by ({SEED}) ({of('qttdm_failures_total')})", "none", {1: ORANGE, 10: RED}),
            },
        )
    ]
    models = [
        lines(
            "Losses",
            "Of the last updates, mean over the chosen seeds. They need not fall for ever: new data is harder data.",
            {"{{term}}": f"avg by (term) ({of('qttdm_loss')})"},
            "short",
            logarithmic=True,
        ),
        lines(
            "Q against return",
            "Q and its targets, and what the same states really got: the discounted rewards to the end of their "
            "episodes. Q far above it for long is overestimation.",
            {
                "Q": f"avg({of('qttdm_q_mean')})",
                "target": f"avg({of('qttdm_q_target_mean')})",
                "largest Q": f"max({of('qttdm_q_max')})",
                "return of the same states": f"avg({of('qttdm_replayed_return')})",
            },
            "short",
        ),
        lines(
            "Value promised and got",
            "On evaluation episodes: what the policy promised, and what it then got.",
            {
                "promised": f"avg({of('qttdm_value_expected')})",
                "got": f"avg({of('qttdm_value_realised')})",
            },
            "short",
        ),
        lines(
            "Model error, state",
            "On fresh evaluation episodes, over the error of predicting that nothing moves: above 1 the model is worse "
            "than that. One step, and at the planner's horizon.",
            {"{{rollout}}": f"avg by (rollout) ({of('qttdm_model_state_error_ratio')})"},
            "percentunit",
            {1: RED},
        ),
        lines(
            "Model error, reward",
            "Mean squared error of the predicted reward on fresh evaluation episodes, one step and at the planner's "
            "horizon.",
            {"{{rollout}}": f"avg by (rollout) ({of('qttdm_model_reward_error')})"},
            "short",
            logarithmic=True,
        ),
        lines(
            "Gradient norm",
            "Before clipping, mean over the chosen seeds. Jumps by orders of magnitude come before a loss that is not "
            "a number.",
            {"{{network}}": f"avg by (network) ({of('qttdm_gradient_norm')})"},
            "short",
            logarithmic=True,
        ),
    ]
    return board(
        "qttdm-training",
        "QT-TDM 1: Training",
        "How the seeds of a run are learning. Where its time goes and what broke: System.",
        "qttdm_env_steps_total",
        {
            "Is it well?": well,
            "Is it learning?": learning,
            "Is this seed worse than that one?": seeds,
            "Are its models right?": models,
        },
    )
