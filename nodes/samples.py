"""The pictures our templates open with, put into ComfyUI's input folder as its own ``example.png`` is."""

import logging
import shutil
import sys
from pathlib import Path

from tops_workflow.samples import SAMPLES, samples_folder

_log = logging.getLogger(__name__)


def offer_samples() -> None:
    """Copy what is missing, under 300 kB in all. A folder that cannot be written is no reason not to start."""
    if "folder_paths" not in sys.modules:
        return
    import folder_paths

    target = Path(folder_paths.get_input_directory())
    for name in SAMPLES:
        if not (target / name).exists():
            try:
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(samples_folder() / name, target / name)
            except OSError as error:
                _log.warning("TOPS: the templates' sample pictures cannot be copied to %s: %s", target, error)
                return
