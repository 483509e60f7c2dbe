"""No path or host of the machine that something was built on stands in a tracked file.

Why: such a path works for the one who wrote it, and for nobody else; an internal host in a lock file or a log stops
everybody's install and tells strangers of the inside.
"""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# what stands before keeps URLs and `{folder}/root/` out
LOCAL = re.compile(r"(?<![\w.~}\)-])/(?:work(?:space)?|root|home/[a-z]+|Users/[A-Za-z]+)/")
INDEX = re.compile(r"index-url[ =\"']+[a-z]+:[^\s\"']+")
PRIVATE_HOST = re.compile(r"https?://[\w.-]+\.(?:internal|corp|lan)\b")
MOST_BYTES = 2_000_000


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [path for name in done.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def faults(text: str) -> list[str]:
    return [match.group(0) for pattern in (LOCAL, INDEX, PRIVATE_HOST) for match in pattern.finditer(text)]


def test_no_local_path_and_no_internal_host() -> None:
    found: list[str] = []
    for path in tracked():
        content = path.read_bytes()
        if len(content) > MOST_BYTES or b"\0" in content or path == Path(__file__):
            continue
        text = content.decode(errors="replace")
        found += [f"{path.relative_to(ROOT)}: {fault}" for fault in faults(text)]
    assert not found, "\n".join(found)


def test_the_rule_sees_what_it_forbids() -> None:
    assert faults("open('" + "/" + "workspace/main/x')") and faults("HOME=" + "/" + "root/.cache")
    assert faults("--index-url " + "https://mirror.example/simple") and faults("--extra-index-url=" + "file:///x/y")
    assert faults("http://" + "packages.corp/simple")
    assert faults("a/root/b and https://example.com/root/x and ~/.ebb and {folder}/root/") == []
