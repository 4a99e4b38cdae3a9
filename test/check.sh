#!/usr/bin/env bash
# Pass all tests: makes the environment if it is missing, then lints and tests.
#
#   bash test/check.sh [--torch=GENERATION] [pytest arguments]      e.g. bash test/check.sh -m 'not slow'
#
# --torch=1.5, 1.8, 1.11 or 2.x tests with that generation of PyTorch, in an environment of its own unless the PyTorch at
# hand is of it; --torch=all with each of them, and that their losses agree and their checkpoints pass between them.
# Without --torch: with the PyTorch at hand; where there is none, with the newest that a Python at hand can run.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/lib/python.sh"
cd "$ROOT"

wanted='' passed_on=()
while (($#)); do
    case $1 in
        --help | -h)
            sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
            exit 0
            ;;
        --torch=*) wanted=${1#*=} ;;
        --torch) (($# > 1)) || die '--torch: give a generation, or all' && wanted=$2 && shift ;;
        *) passed_on+=("$1") ;;
    esac
    shift
done
set -- ${passed_on[@]+"${passed_on[@]}"}

# environment GENERATION: PYTHON, with all that the tests need.
environment() {
    make_environment "$1" "torch torchvision timm PIL numpy tensorboard pytest transformers ruff" \
        "$ROOT/test/requirements.txt"
}

if [[ $wanted != all ]]; then
    environment "$wanted"
    exec "$PYTHON" -m pytest "$@"
fi

export MAE_PYTHONS=''      # for test_generations.py; it and the stress test are in the last run only
chosen=${PYTHON:-} found=() pythons=() report=() status=0
for generation in 1.5 1.8 1.11 2.x; do
    PYTHON=$chosen
    if python_with_torch "$generation" >/dev/null || python_for "$generation" >/dev/null; then
        environment "$generation"
        found+=("$generation") pythons+=("$PYTHON") MAE_PYTHONS+="$generation=$PYTHON"$'\n'
    else
        release_of "$generation"
        report+=("PyTorch $generation: not run, it needs Python ${VERSIONS[*]}, which is not found")
        if [[ ${CI:-} == true ]]; then status=1; fi     # there nothing may be left out
    fi
done

for i in ${pythons[@]+"${!pythons[@]}"}; do
    printf '\n=== PyTorch %s\n' "${found[i]}"
    begun=$SECONDS result=passed
    others=(--ignore=test/unit/test_generations.py --ignore=test/unit/test_stress.py)
    if ((i == ${#pythons[@]} - 1)); then others=(); fi
    "${pythons[i]}" -m pytest ${others[@]+"${others[@]}"} "$@" || result=FAILED status=1
    report+=("PyTorch ${found[i]}: $result in $(((SECONDS - begun) / 60)) min $(((SECONDS - begun) % 60)) s")
done
printf '\n'
printf '%s\n' "${report[@]}"
exit "$status"
