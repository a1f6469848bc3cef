"""A tar of many small files unpacked, hashed and written into a manifest, against tarfile and hashlib.

The peer is `tarfile.extractall`, then SHA-256 of each file and one JSON of sizes and digests. Both leave the same files
and the same digests. Each run is a process of its own.
Companion: the peak resident memory of both at two numbers of files, and its growth for each file.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path

from harness import paired, report

SIZES = (20_000, 100_000)


def make(path: Path, files: int) -> None:
    """Write a tar of `files` members of 1 KB in folders of 1,000."""
    with tarfile.open(path, "w") as t:
        for i in range(files):
            member = tarfile.TarInfo(f"pictures/{i // 1000:04d}/{i:08d}.jpg")
            member.size, member.mtime = 1024, 1_700_000_000
            t.addfile(member, BytesIO(hashlib.sha256(str(i).encode()).digest() * 32))


def ours(archive: Path, out: Path) -> None:
    """Extract and install, as `vlm download` does with an archive that it has fetched."""
    from vlm.core.fetch.archive import extract
    from vlm.core.fetch.manifest import PARTIAL, install
    from vlm.core.spill import StoredMap

    sums = StoredMap()
    staged = extract(archive, {"*": ""}, out / PARTIAL / "0" / "tree", sums=sums)
    install(out, staged, name="bench", source=[], sums=sums)


def peer(archive: Path, out: Path) -> None:
    """Extract all, then hash all."""
    with tarfile.open(archive) as t:
        t.extractall(out, filter="data")
    found = {}
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        with path.open("rb") as f:
            digest = hashlib.file_digest(f, "sha256").hexdigest()
        found[str(path.relative_to(out))] = {"sha256": digest, "size": path.stat().st_size}
    (out / ".vlm-manifest.json").write_text(json.dumps({"files": found}, indent=1, sort_keys=True))


def alone(which: str, archive: Path, out: Path) -> int:
    """Run one side in a process of its own; return its peak resident memory in bytes."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    line = [sys.executable, __file__, which, str(archive), str(out)]
    return int(subprocess.run(line, capture_output=True, text=True, check=True).stdout) * 1024


def main() -> None:
    rows, peaks = [], {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for files in SIZES:
            archive = root / f"{files}.tar"
            make(archive, files)
            row = paired(
                lambda a=archive: alone("ours", a, root / "ours"), lambda a=archive: alone("peer", a, root / "peer"), 2
            )
            one, other = (json.loads((root / w / ".vlm-manifest.json").read_text())["files"] for w in ("ours", "peer"))
            assert one == other and len(one) == files
            peaks[files] = [alone(which, archive, root / which) for which in ("ours", "peer")]
            rows.append(
                {"files": files, "peak_mb_ours": peaks[files][0] / 1e6, "peak_mb_peer": peaks[files][1] / 1e6} | row
            )
    few, many = SIZES
    for i, which in enumerate(("ours", "peer")):
        rows[-1][f"bytes_a_file_{which}"] = (peaks[many][i] - peaks[few][i]) / (many - few)
    report("unpack", rows)


if __name__ == "__main__":
    if len(sys.argv) == 4:
        {"ours": ours, "peer": peer}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
        # not ru_maxrss, which begins with the peak of the process that started this one
        print(next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM")).split()[1])
    else:
        main()
