"""Write the tasks that lmms-eval does not bring along: python -m lmms_eval_tops.task_files FOLDER [--scenes 20]"""

import argparse
import shutil
from importlib.resources import as_file, files
from pathlib import Path

from lmms_eval_tops.mini_scenes import write_task


def write_tasks(folder: Path, num_scenes: int | None = None) -> None:
    """Copy the tasks of this package to a folder, and make that of mini's scenes if their number is given."""
    folder.mkdir(parents=True, exist_ok=True)
    with as_file(files("lmms_eval_tops") / "tasks") as own:
        for path in sorted(own.glob("*.yaml")):
            shutil.copyfile(path, folder / path.name)
    if num_scenes is not None:
        write_task(folder / "mini_scenes", num_scenes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scenes", type=int, help="make the task of mini's scenes, with this many scenes")
    arguments = parser.parse_args()
    write_tasks(arguments.folder, arguments.scenes)


if __name__ == "__main__":
    main()
