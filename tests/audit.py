"""`make audit`: do the pinned packages have vulnerabilities that are known? Asks PyPI, if it can be reached."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[1]
_PINS = _ROOT / "constraints.txt"
_PROGRAM = _ROOT / ".tools" / "bin" / "pip-audit"
# Its faults have long been known: who does not tell of them knows of nothing. (A mirror of PyPI has no advisories, and
# pip-audit then finds everything in order.)
_KNOWN_TO_BE_BAD = "urllib3==1.26.4\n"


def main() -> int:
    with tempfile.TemporaryDirectory() as directory:
        canary = Path(directory) / "canary.txt"
        canary.write_text(_KNOWN_TO_BE_BAD)
        if not any(one.get("vulns") for one in _audited(canary)):
            print("Audit: SKIPPED, because no list of known vulnerabilities can be reached from here.")
            return 0
    found = _audited(_PINS)
    if not found:
        print(
            "Audit: FAILED, though advisories can be reached; see `.tools/bin/pip-audit -r constraints.txt --no-deps`."
        )
        return 1
    bad = [one for one in found if one.get("vulns")]
    for one in bad:
        for fault in one["vulns"]:
            print(f"{one['name']} {one['version']}: {fault['id']}, mended in {', '.join(fault['fix_versions']) or '-'}")
    unknown = [one["name"] for one in found if "skip_reason" in one]
    print(
        f"Audit: {len(found)} packages, {len(bad)} with known vulnerabilities; not known: {', '.join(unknown) or '-'}"
    )
    return 1 if bad else 0


def _audited(requirements: Path) -> list[dict[str, Any]]:
    """pip-audit's finding for each package, or nothing where it cannot ask anyone."""
    options = ("--format=json", "--no-deps", "--disable-pip", "--progress-spinner=off", f"--requirement={requirements}")
    try:
        done = subprocess.run([_PROGRAM, *options], capture_output=True, text=True, check=False, timeout=600)
        return json.loads(done.stdout)["dependencies"]
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError):
        return []


if __name__ == "__main__":
    sys.exit(main())
