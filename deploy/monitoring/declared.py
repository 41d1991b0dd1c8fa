"""Import every module that declares a metric or a number of metrics.jsonl: the registries are complete from here on."""

import qttdm.actors.diagnosis
import qttdm.actors.measured
import qttdm.actors.remote
import qttdm.common.metrics.gpu
import qttdm.common.metrics.lines
import qttdm.common.metrics.process
import qttdm.deploy.configs.cluster_config
import qttdm.learner.learner
import qttdm.learner.metrics
import qttdm.learner.parts.actor_critic
import qttdm.learner.parts.iql
import qttdm.learner.parts.mlp_dynamics
import qttdm.learner.parts.qt
import qttdm.learner.parts.sequence
import qttdm.learner.parts.tdm
import qttdm.learner.parts.world_model
import qttdm.planner_service.policies.metrics
import qttdm.planner_service.serving.service
import qttdm.replay.metrics  # noqa: F401
