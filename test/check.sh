#!/usr/bin/env bash
# Pass all tests: makes the environment if it is missing, then lints and tests.
#
#   bash test/check.sh [pytest arguments]      e.g. bash test/check.sh -m 'not slow'
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$ROOT/test/lib/python.sh"

if [[ ${1:-} == --help || ${1:-} == -h ]]; then
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
    exit 0
fi
make_environment "torch torchvision timm PIL numpy tensorboard pytest transformers ruff" \
    "$ROOT/2.x_requirements.txt" "$ROOT/test/requirements.txt"
cd "$ROOT"
"$PYTHON" -m pytest "$@"
