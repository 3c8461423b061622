#!/usr/bin/env bash
# Format, lint and types, then all tests but the slow ones. Arguments go to pytest, for example: infra/test.sh -m slow
set -euo pipefail
cd "$(dirname "$0")/.."
. infra/environment.sh
ruff format --check .
ruff check .
mypy
if [ $# -gt 0 ]; then exec python -m pytest -q "$@"; fi
failed=0
python -m pytest -q -n logical --maxprocesses 8 --dist loadfile --durations 15 || failed=1
# A Ray, a Ceph or a browser takes several cores: one at a time.
python -m pytest -q -m '(ray or integration) and not slow' --durations 15 || failed=1
exit $failed
