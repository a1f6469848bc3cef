"""`vlm --help` against `python -c "import torch"`, whole processes. Companion: modules imported."""

import subprocess
import sys

from harness import paired, report

HELP = [sys.executable, "-m", "vlm.cli.main", "--help"]
TORCH = [sys.executable, "-c", "import torch"]


def modules(code: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", code + "; import sys; print(len(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout.split()[-1])


def main() -> None:
    run = lambda command: lambda: subprocess.run(command, capture_output=True, check=True)  # noqa: E731
    row = paired(run(HELP), run(TORCH))
    report(
        "startup", [{"modules_ours": modules("import vlm.cli.main"), "modules_peer": modules("import torch"), **row}]
    )


if __name__ == "__main__":
    main()
