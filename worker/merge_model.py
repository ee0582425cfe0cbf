"""Merges an adapter into its base, in a process of its own: plain 16-bit weights, with tokenizer and configuration.

    python -m worker.merge_model --base DIRECTORY --adapter DIRECTORY --output DIRECTORY --parent-pid PID

Exits with 1 and one sentence on stderr where it cannot be done; what was in the output directory is left alone.
"""

import argparse
import logging
import os
import sys
import warnings
from pathlib import Path

from worker.child import die_with_parent
from worker.contract.errors import TrainError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m worker.merge_model")
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--parent-pid", type=int)
    arguments = parser.parse_args()
    die_with_parent(arguments.parent_pid)
    os.environ["HF_HUB_OFFLINE"] = "1"
    # Here, so that a parent that is gone is noticed before seconds of imports.
    from transformers.utils import logging as transformers_logging

    from worker.engine.merge import merge

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    logging.getLogger("peft").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")  # stderr is for the one sentence
    try:
        merge(arguments.base, arguments.adapter, arguments.output)
    except TrainError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
