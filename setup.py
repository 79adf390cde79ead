"""The one step of the build that pyproject.toml cannot state: wheels carry the checkpoints, without their pictures."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

KEPT = ("model.safetensors", "config.json", "README.md")


class WithCheckpoints(build_py):
    """Copies checkpoints/ into the package; an editable install finds them where they are, in the clone."""

    def run(self) -> None:
        super().run()
        for source in [] if self.editable_mode else sorted(Path("checkpoints").glob("*/*")):
            target = Path(self.build_lib, "weightedit", source)
            if source.name in KEPT:
                self.mkpath(str(target.parent))
                self.copy_file(str(source), str(target))


setup(cmdclass={"build_py": WithCheckpoints})
