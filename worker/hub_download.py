"""The short-lived child that fetches files from the Hugging Face hub, so that fetching can be ended at any time.

    python -m worker.hub_download REPOSITORY COMMIT DIRECTORY PARENT_PID NAME...

prints, as its last line, the directory that holds the files: one in the Hugging Face cache, or DIRECTORY. What went
wrong is the last line on stderr, and the exit status 1. It is the only one to use HF_TOKEN, and gets none of Hone's
own secrets.
"""

import sys
from pathlib import Path

from worker.child import die_with_parent
from worker.data import hub
from worker.data.base_manifest import BadBaseModel, is_wanted


def main(arguments: list[str]) -> int:
    repository, commit, directory, parent, *names = arguments
    die_with_parent(int(parent))
    if not all(is_wanted(name) for name in names):
        raise SystemExit("a name in the list is not that of a base model's file")
    try:
        found = hub.obtain(repository, commit, names, Path(directory))
    except BadBaseModel as error:
        sys.stderr.write(f"\n{' '.join(str(error).split())}\n")
        return 1
    sys.stdout.write(f"\n{found}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
