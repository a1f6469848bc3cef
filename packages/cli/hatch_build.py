"""Put the workflow of the repository into the wheel, where `vlm.cli.workflow.place` finds it; git holds one copy."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FILES = ("Snakefile", "workflows", "profiles")
WHEEL = "vlm/cli/workflow/files"
SDIST = "repository"


class WorkflowFiles(BuildHookInterface):
    """The hook of hatchling. An editable installation reads the repository itself."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the files to what is built; a source archive carries them in a folder of its own."""
        if version == "editable":
            return
        packed = Path(self.root) / SDIST
        root = packed if packed.is_dir() else Path(self.root).parents[1]
        target = WHEEL if self.target_name == "wheel" else SDIST
        build_data["force_include"] |= {str(root / name): f"{target}/{name}" for name in FILES}
