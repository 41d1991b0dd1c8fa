"""Import every module that declares a metric or a number of metrics.jsonl: the registries are complete from here on."""

from importlib import import_module
from pkgutil import iter_modules

import qttdm.actors.diagnosis
import qttdm.actors.metrics
import qttdm.common.metrics.gpu
import qttdm.common.metrics.lines
import qttdm.common.metrics.process
import qttdm.deploy.configs.cluster_config
import qttdm.learner.learner
import qttdm.learner.metrics
import qttdm.learner.parts
import qttdm.planner_service.policies.metrics
import qttdm.planner_service.serving.service
import qttdm.replay.metrics

for part in iter_modules(qttdm.learner.parts.__path__, "qttdm.learner.parts."):
    import_module(part.name)
