"""Put the newest vLLM's Python sources beside the compiled parts of the CPU build that is installed.

    python tests/integrations/vllm_tops/environment/compose.py FOLDER [WHEEL]

vLLM 0.33 has no CPU build on the registry. Its wheel for GPUs has the same Python sources; with the compiled parts of
the CPU build of 0.32 they serve models here. Set PYTHONPATH to FOLDER to use them. Without WHEEL it is downloaded
(0.3 GB).
"""

import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

RELEASE = "0.33.0"


def main(folder: Path, wheel: Path | None) -> None:
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        raise SystemExit("Run this with the Python of an environment that has vLLM's CPU build (make test-vllm).")
    with tempfile.TemporaryDirectory() as downloads:
        unpack(wheel or download(Path(downloads)), folder)
    for compiled in Path(spec.origin).parent.glob("*.so"):
        (folder / "vllm" / compiled.name).symlink_to(compiled)
    # vLLM looks up by this name and version whether it is a CPU build.
    metadata = folder / f"vllm-{RELEASE}+cpu.dist-info"
    (folder / f"vllm-{RELEASE}.dist-info").rename(metadata)
    text = (metadata / "METADATA").read_text(encoding="utf-8")
    (metadata / "METADATA").write_text(text.replace(f"Version: {RELEASE}\n", f"Version: {RELEASE}+cpu\n", 1))


def download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", f"vllm=={RELEASE}"]
    subprocess.run([*command, "--dest", str(folder)], check=True)
    return next(folder.glob("*.whl"))


def unpack(wheel: Path, folder: Path) -> None:
    """Unpack what is not compiled, without the headers of other projects."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            is_code = name.endswith((".so", "vllm/vllm-rs"))
            if not is_code and (not name.startswith("vllm/third_party/") or name.endswith(".py")):
                archive.extract(name, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
