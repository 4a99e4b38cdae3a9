#!/usr/bin/env bash
# Pass all tests: makes the environment if it is missing, then lints and tests.
#
#   bash test/check.sh [--torch=GENERATION] [pytest arguments]      e.g. bash test/check.sh -m 'not slow'
#
# --torch=1.5, 1.8, 1.11 or 2.x tests with that generation of PyTorch, in an environment of its own unless the PyTorch at
# hand is of it, --torch=2.1 always in one of its own; --torch=all with the newest, runs the tests marked "compat" with
# the others and 2.1, and checks that their losses agree and that each reads the others' checkpoints.
# Without --torch: with the PyTorch at hand; where there is none, with the newest that a Python at hand can run.
# The files of tests are spread over two cores, if there are as many; -n 0 runs one test after the other.
# shellcheck source=lib/python.sh
. "$(dirname "$0")/lib/python.sh"
set -euo pipefail
cd "$ROOT"

wanted='' passed_on=()
while (($#)); do
    case $1 in
        --help | -h)
            sed -n '2,/^# shellcheck/{/^# shellcheck/d; s/^# \{0,1\}//p}' "$0"
            exit 0
            ;;
        --torch=*) wanted=${1#*=} ;;
        --torch) (($# > 1)) || die '--torch: give a generation, or all' && wanted=$2 && shift ;;
        *) passed_on+=("$1") ;;
    esac
    shift
done

# environment GENERATION: PYTHON, with all that the tests need.
environment() {
    make_environment "$1" "torch torchvision timm PIL simplejpeg numpy tensorboard yaml tqdm filelock safetensors pytest \
xdist transformers onnxruntime ruff" "$ROOT/test/requirements.txt"
}

# announce WHAT TIME: what follows, and how long it takes on two cores.
announce() { printf '%s, %d at a time; on 2 quiet cores %s, longer if environments are made first\n' "$1" "$cores" "$2"; }

cores=$(nproc 2>/dev/null || echo 2)       # macOS has no nproc
if ((cores > 2)); then cores=2; fi
# By file, since what its tests share is made once.
passed_on=(-n "$cores" --dist loadfile ${passed_on[@]+"${passed_on[@]}"})
if [[ $wanted != all ]]; then
    announce "lint and tests with ${wanted:+PyTorch }${wanted:-${PYTHON:-the PyTorch at hand}}" \
        "about 8 minutes (1 with -m 'not slow')"
    environment "$wanted"
    exec "$PYTHON" -m pytest "${passed_on[@]}"
fi
announce 'lint and tests with PyTorch 2.x, and a part of them with 1.5, 1.8, 1.11 and 2.1' 'about 13 minutes'

export MAE_PYTHONS=''      # for test_generations.py; what the last run alone has is named below
chosen=${PYTHON:-} found=() pythons=() report=() status=0
for generation in 1.5 1.8 1.11 2.1 2.x; do
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

# test_generation I: run the tests with the I-th that was found, and note its result: pytest's last line.
test_generation() {
    local i=$1 result='' words=("${passed_on[@]}")
    if ((i < last)); then
        words+=(-m compat --ignore=test/unit/test_generations.py)       # the last -m counts
    fi
    printf '\n=== PyTorch %s\n' "${found[i]}"
    "${pythons[i]}" -m pytest "${words[@]}" | tee "$results/$i.log" || result='FAILED, '   # so does one without any test
    printf 'PyTorch %s: %s%s\n' "${found[i]}" "$result" "$(tail -n 1 "$results/$i.log" | tr -d =)" >"$results/$i"
}

# test_all I...: one after the other, but for those that have begun.
test_all() {
    local i
    for i in "$@"; do
        if mkdir "$results/$i.begun" 2>/dev/null; then test_generation "$i"; fi
    done
}

# Two at a time, since tests also wait: from the newest, shown as it goes, and from the oldest, shown after.
last=$((${#pythons[@]} - 1)) results=$(mktemp -d) newest_first=() oldest_first=()
for ((i = 0; i <= last; i++)); do newest_first=("$i" ${newest_first[@]+"${newest_first[@]}"}) oldest_first+=("$i"); done
set -m      # a process group of its own, which ends with this script
test_all ${oldest_first[@]+"${oldest_first[@]:0:last}"} >"$results/older" 2>&1 &
set +m
older=$!
trap 'kill -- "-$older" 2>/dev/null || true; rm -rf "$results"' EXIT
test_all ${newest_first[@]+"${newest_first[@]}"}
wait
cat "$results/older"
for ((i = 0; i <= last; i++)); do report+=("$(cat "$results/$i")"); done
if [[ ${CI:-} == true ]]; then      # exchange of weights, with a transformers that nothing pins
    newest_beside "${pythons[last]}" transformers
    result=''
    "$NEWEST" -m pytest "${passed_on[@]}" test/unit/models test/unit/checkpoints/test_foreign_weights.py \
        test/unit/tools/test_export.py | tee "$results/newest.log" || result='FAILED, '
    report+=("newest transformers: $result$(tail -n 1 "$results/newest.log" | tr -d =)")
fi
if [[ ${report[*]} == *FAILED* ]]; then status=1; fi
printf '\n'
printf '%s\n' "${report[@]}" "in all: $((SECONDS / 60)) minutes"
exit "$status"
