"""The presets by name: each is a file of this folder. Light: the command line's help lists them."""

from pathlib import Path

PRESET_FILES = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.yaml"))}
