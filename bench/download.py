"""A download with a checksum, against curl and then sha256sum, from a server on this machine.

Both are whole processes: ours is Python with `fetch_url`, which hashes while it writes. Both leave the same bytes.
"""

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import paired, report

MEGABYTES = 512
OURS = (
    "import sys; from pathlib import Path; from vlm.core.fetch.transfer import fetch_url; "
    "fetch_url(sys.argv[1], Path(sys.argv[2]), sha256=sys.argv[3])"
)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        block = hashlib.shake_256(b"bench").digest(1 << 20)
        with (root / "f").open("wb") as f:
            f.writelines(block for _ in range(MEGABYTES))
        with (root / "f").open("rb") as f:
            digest = hashlib.file_digest(f, "sha256").hexdigest()
        serve = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", folder]
        with subprocess.Popen(serve, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
            assert server.stdout
            url = f"http://127.0.0.1:{server.stdout.readline().split(' port ')[1].split()[0]}/f"
            try:

                def ours() -> None:
                    (root / "ours").unlink(missing_ok=True)
                    subprocess.run([sys.executable, "-c", OURS, url, str(root / "ours"), digest], check=True)

                def peer() -> None:
                    subprocess.run(["curl", "-s", "-o", str(root / "peer"), url], check=True)
                    done = subprocess.run(["sha256sum", str(root / "peer")], capture_output=True, text=True, check=True)
                    assert done.stdout.split()[0] == digest

                row = paired(ours, peer, runs=3)
            finally:
                server.terminate()
        report("download", [{"megabytes": MEGABYTES, **row}])


if __name__ == "__main__":
    main()
