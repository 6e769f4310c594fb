#!/usr/bin/env bash
# Makes the label maps the benchmarks need from their published files; `bash process_dataset.sh --help` tells more.
# Can be run again at any time: what is there is kept, nothing is deleted.
set -euo pipefail

here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
python=$here/.venv/bin/python
[ -x "$python" ] || python=python3
PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH} exec "$python" -m eval.prepare "$@"
