"""Try the textregion that is installed for this Python, beside other people's packages: python tests/check_wheel.py.

Works with the standard library alone, so that an environment can be tried that has nothing but the wheel and what it
asks for. From an empty folder, with packages `utils` and `eval` of somebody else first on the path, it runs the
program `textregion`, and lists what `import textregion` loads. Ends with exit code 1 and what is wrong.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

UNWANTED = ("argparse", "gradio", "matplotlib", "mmengine", "mmseg", "textregion.cli", "textregion.web")
IMPORTS = """
import sys, time
started = time.perf_counter()
import textregion
seconds = time.perf_counter() - started
alone = sorted(sys.modules)
from textregion import TextRegionSegmenter
import eval, utils
print(textregion.__file__, eval.OWNER, utils.OWNER, f"{seconds:.3f}", sep="\\n")
print(",".join(alone), ",".join(sorted(sys.modules)), sep="\\n")
"""


def run(command: list[str], folder: Path, others: Path) -> str:
    """What a command prints; it runs in `folder`, with `others` first on the path. AssertionError when it fails."""
    environment = {**os.environ, "PYTHONPATH": str(others), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout


def check_program(folder: Path, others: Path) -> None:
    """`textregion` draws and labels the embedded scene."""
    said = run([str(Path(sys.executable).with_name("textregion")), "--output", "drawn"], folder, others)
    assert "mean IoU" in said, said
    assert (folder / "drawn" / "scene_10" / "picture.png").is_file(), said
    print("\n".join(line for line in said.splitlines() if "mean IoU" in line))


def check_imports(folder: Path, others: Path) -> None:
    """Nothing is loaded that a library has no use for, and nobody's `utils` or `eval` is replaced."""
    lines = run([sys.executable, "-c", IMPORTS], folder, others).splitlines()
    place, *owners, seconds = lines[:4]
    alone, with_class = (line.split(",") for line in lines[4:])
    assert Path(place).is_relative_to(sys.prefix), f"textregion is loaded from {place}, not from {sys.prefix}"
    assert owners == ["somebody else"] * 2, owners
    loaded = {name for name in alone if name.startswith(UNWANTED)}
    # Of the packages that the class needs, some load argparse.
    loaded |= {name for name in with_class if name.startswith(UNWANTED[1:])}
    assert not loaded, f"imports load {', '.join(sorted(loaded))}"
    ours = [[name for name in names if name.partition(".")[0] == "textregion"] for names in (alone, with_class)]
    print(f"import textregion: {seconds} s, {len(ours[0])} modules of ours; with the class {len(ours[1])}")


def main() -> None:
    """Both checks."""
    with tempfile.TemporaryDirectory() as folder:
        others, empty = Path(folder, "others"), Path(folder, "empty")
        empty.mkdir()
        for name in ("utils", "eval"):
            (others / name).mkdir(parents=True)
            (others / name / "__init__.py").write_text("OWNER = 'somebody else'\n", encoding="utf-8")
        check_program(empty, others)
        check_imports(empty, others)


if __name__ == "__main__":
    main()
