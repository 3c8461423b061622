#!/usr/bin/env bash
# Format, lint and types, then all tests but the slow ones. Arguments go to pytest, for example: infra/test.sh -m slow
set -euo pipefail
cd "$(dirname "$0")/.."
. infra/environment.sh
ruff format --check .
ruff check .
mypy
if [ $# -eq 0 ]; then set -- -m 'not slow' --durations 15; fi
python -m pytest -q "$@"
