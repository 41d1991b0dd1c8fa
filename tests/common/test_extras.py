import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from qttdm.common import extras
from qttdm.common.config import ConfigError
from qttdm.common.extras import EXTRAS, missing, need

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


def asked_for(extra):
    """Names of the distributions that an extra asks for, those of the extras in it too."""
    names = set()
    for requirement in map(Requirement, PROJECT["optional-dependencies"][extra]):
        inner = requirement.extras if requirement.name == "qttdm" else ()
        names |= {canonicalize_name(requirement.name)}.union(*map(asked_for, inner))
    return names


@pytest.mark.parametrize("extra", EXTRAS)
def test_installing_an_extra_brings_what_it_is_named_for(extra):
    for package in EXTRAS[extra]:
        assert {canonicalize_name(name) for name in packages_distributions()[package]} & asked_for(extra)
    assert asked_for(extra) <= asked_for("all")


def test_what_is_missing_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(extras.EXTRAS, "serve", ("yaml", "no_such_package"))
    assert missing("serve") == ["no_such_package"]
    with pytest.raises(ConfigError, match=r"^qttdm serve needs no_such_package: pip install 'qttdm\[serve\]'$"):
        need("serve", "qttdm serve")
