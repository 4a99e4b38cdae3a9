# shellcheck shell=bash
# Which Python runs the program, and making an environment for it where there is none.

# die MESSAGE...: end with one line and the status of a mistake that the user can mend.
die() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

TORCH_2X=(torch==2.11.0 torchvision==0.26.0)

# cache_folder: where environments live, outside the checkout.
cache_folder() {
    printf '%s' "${MAE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mae-pytorch}"
}

# has_modules PYTHON MODULE...: the interpreter finds all of them (nothing is imported, so this is quick).
has_modules() {
    local python=$1
    shift
    "$python" -c 'import sys
from importlib.util import find_spec
sys.exit(any(find_spec(name) is None for name in sys.argv[1:]))' "$@" 2>/dev/null
}

# find_python: PYTHON, the interpreter to run the program with: the user's choice, else one that has torch, else an
# environment that was made before.
find_python() {
    local candidate
    if [[ -n ${PYTHON:-} ]]; then return; fi
    for candidate in python3 python; do
        if has_modules "$candidate" torch; then
            PYTHON=$candidate
            return
        fi
    done
    for candidate in "$(cache_folder)"/env-*/bin/python; do
        if [[ -e ${candidate%/bin/python}/complete ]]; then
            PYTHON=$candidate
            return
        fi
    done
    die "no Python with PyTorch found: run 'bash test/demo.sh', which makes one, or set PYTHON=/path/to/python"
}

# make_environment "MODULE..." REQUIREMENTS...: PYTHON, an interpreter that has these modules.
# A torch that python3 can import already is used and never replaced: a venv beside it adds only what is missing.
# Without one, a venv with a matching torch is made. The venv lies in the cache, keyed by the first requirements, the
# program's; the tests add theirs to it.
make_environment() {
    local modules base visible=() torch=() file folder added
    read -ra modules <<<"$1"
    shift
    if base=$(python_with_torch); then
        if has_modules "$base" "${modules[@]}"; then
            PYTHON=$base
            return
        fi
        echo "using the PyTorch of $base; what is missing beside it goes into an environment of its own"
        visible=(--system-site-packages)
    else
        base=$(python_for_torch)
        torch=("${TORCH_2X[@]}")
    fi
    folder=$(cache_folder)/env-$({
        "$base" -c 'import sys; print(sys.version, sys.prefix)'
        echo "${torch[*]-}"
        cat "$1"
    } | digest "$base")
    PYTHON=$folder/bin/python
    mkdir -p "$(cache_folder)"
    exec 9>"$folder.lock"
    if command -v flock >/dev/null; then flock 9; fi        # two that start together make it once
    if [[ ! -e $folder/complete ]]; then
        echo "making a Python environment in $folder (a few minutes, once)"
        "$base" -m venv --clear ${visible[@]+"${visible[@]}"} "$folder" ||
            die "$base cannot make an environment: install its venv module (python3-venv on Debian and Ubuntu)"
        install_packages "$folder" "$1" ${torch[@]+"${torch[@]}"}
        touch "$folder/complete"
    fi
    shift
    for file in "$@"; do
        added=$folder/added-$(digest "$base" <"$file")
        if [[ ! -e $added ]]; then
            install_packages "$folder" "$file"
            touch "$added"
        fi
    done
    exec 9>&-
}

# digest PYTHON: a short hash of standard input.
digest() { "$1" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest()[:16])'; }

# install_packages FOLDER REQUIREMENTS PACKAGE...: into the environment at FOLDER, leaving the torch that it sees as it is.
install_packages() {
    local folder=$1 requirements=$2
    shift 2
    keep_torch "$folder"
    "$folder/bin/python" -m pip install --disable-pip-version-check --constraint "$folder/constraints.txt" "$@" \
        -r "$requirements" ||
        die "pip could not install $requirements: see its message above; the same command tries again"
}

# python_with_torch: the first of python3, python that has a torch.
python_with_torch() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python; do
        if has_modules "$candidate" torch; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

# python_for_torch: an interpreter that the torch above installs on.
python_for_torch() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python3.10 python; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    die "Python 3.10 to 3.13 is needed for ${TORCH_2X[0]}, found: $(python3 --version 2>&1 || true); set PYTHON=..."
}

# keep_torch FOLDER: constraints that pin the torch, torchvision and numpy that the environment sees already.
keep_torch() {
    "$1/bin/python" - >"$1/constraints.txt" <<'EOF'
try:
    from importlib.metadata import PackageNotFoundError, version
except ImportError:     # Python 3.7
    from pkg_resources import DistributionNotFound as PackageNotFoundError, get_distribution
    def version(name):
        return get_distribution(name).version
for name in ('torch', 'torchvision', 'numpy'):
    try:
        print('{}=={}'.format(name, version(name)))
    except PackageNotFoundError:
        pass
EOF
}
