# shellcheck shell=bash
# Which Python runs the program, and making an environment for it where there is none.

# First, for a reader that is not bash; sh may be bash without its extensions.
[ -n "${BASH_VERSION:-}" ] || { echo "error: $0: run it with bash: bash $0" >&2 && exit 2; }
set +o posix

ROOT=${ROOT:-$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)}
GENERATIONS=(2.x 1.11 1.8 1.5)      # of PyTorch, the first choice first; each has a <generation>_requirements.txt

# die MESSAGE...: end with one line and the status of a mistake that the user can fix.
die() {
    local line=$*
    line=${line//$'\n'/\\n}
    printf 'error: %s\n' "${line//[[:cntrl:]]/?}" >&2
    exit 2
}

# as_paths NAME...: the values of these variables as paths: with the home folder for ~, which the shell leaves alone after
# a `=`; and from the folder where they lie if they begin like a flag.
as_paths() {
    local name
    for name in "$@"; do
        # shellcheck disable=SC2088     # the shell has left it alone
        if [[ ${!name}/ == '~/'* ]]; then printf -v "$name" '%s' "$HOME${!name:1}"; fi
        if [[ ${!name} == -* ]]; then printf -v "$name" './%s' "${!name}"; fi
    done
}

# release_of GENERATION: TORCH, what is installed where no PyTorch of the generation is found, and VERSIONS, the versions
# of Python that it runs on.
release_of() {
    VERSIONS=(3.7)
    case $1 in
        2.x) TORCH=(torch==2.11.0 torchvision==0.26.0) VERSIONS=(3.13 3.12 3.11 3.10) ;;
        2.1) TORCH=(torch==2.1.0 torchvision==0.16.0 'numpy<2') VERSIONS=(3.11 3.10) ;;      # the oldest 2.x, for tests
        1.11) TORCH=(torch==1.11.0) ;;
        1.8) TORCH=(torch==1.8.1) ;;
        1.5) TORCH=(torch==1.5.1) ;;
        *) die "--torch $1: give one of ${GENERATIONS[*]} 2.1, or all" ;;
    esac
}

# torch_version PYTHON: of the PyTorch which the interpreter finds; fails where it finds none. PyTorch is not imported, so
# this is quick.
torch_version() {
    "$1" -c 'import os, runpy
from importlib.util import find_spec
print(runpy.run_path(os.path.join(os.path.dirname(find_spec("torch").origin), "version.py"))["__version__"])' 2>/dev/null
}

# generation_of PYTHON: that of its PyTorch, 1.8 of 1.8.1 and 2.x of 2.11.0; fails where it has none.
generation_of() {
    local version minor
    version=$(torch_version "$1") || return
    minor=${version#*.}
    if [[ $version == 2.* ]]; then echo 2.x; else echo "${version%%.*}.${minor%%.*}"; fi
}

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

# find_python: PYTHON, the interpreter to run the program with: the user's choice, else one that has torch, else the
# newest environment that was made before.
find_python() {
    local candidate generation found=
    if [[ -n ${PYTHON:-} ]]; then return; fi
    if PYTHON=$(python_with_torch); then return; fi
    for generation in "${GENERATIONS[@]}"; do
        for candidate in "$(cache_folder)/env-$generation"-*/complete; do
            if [[ -e $candidate && (-z $found || $candidate -nt $found) ]]; then found=$candidate; fi
        done
        if [[ -n $found ]]; then
            PYTHON=${found%complete}bin/python
            return
        fi
    done
    die "no Python with PyTorch found: run 'bash test/demo.sh', which makes one, or set PYTHON=/path/to/python"
}

# make_environment GENERATION "MODULE..." [REQUIREMENTS]: PYTHON, an interpreter that has these modules beside a PyTorch
# of the generation ('' for the one at hand, else the newest that a Python at hand can run).
# A PyTorch that is found is used and never replaced: a venv beside it adds only what is missing. Without one, a venv
# with a matching PyTorch is made. The venv lies in the cache, keyed by the generation's requirements; REQUIREMENTS are
# added to it.
make_environment() {
    local generation=$1 modules base found torch=() requirements folder added
    read -ra modules <<<"$2"
    if found=$(python_with_torch "$generation"); then
        base=$found
        if has_modules "$base" "${modules[@]}"; then
            PYTHON=$base
            return
        fi
        generation=$(generation_of "$base")
        [[ " ${GENERATIONS[*]} " == *" $generation "* ]] ||
            die "$base has PyTorch $generation, for which there is no requirements file: install what is missing of" \
                "${modules[*]} beside it"
        echo "using the PyTorch of $base; what is missing beside it goes into an environment of its own"
    else
        if [[ -z $generation ]]; then generation=$(generation_for_here); fi
        release_of "$generation"
        base=$(python_for "$generation") || die "PyTorch $generation needs Python ${VERSIONS[*]} with its venv module" \
            "(python3-venv on Debian and Ubuntu), which is not found: install one, or set PYTHON=/path/to/python"
        torch=("${TORCH[@]}")
    fi
    requirements=$ROOT/${generation/2.1/2.x}_requirements.txt
    folder=$(cache_folder)/env-$generation-$({
        "$base" -c 'import sys; print(sys.version, sys.prefix)'
        torch_version "$base" || echo "${torch[@]}"
        cat "$requirements"
    } | digest "$base")
    PYTHON=$folder/bin/python
    mkdir -p "$(cache_folder)"
    exec 9>"$folder.lock"
    if command -v flock >/dev/null; then flock 9; fi        # two that start together make it once
    if [[ ! -e $folder/complete ]]; then
        echo "making a Python environment in $folder (a few minutes, once)"
        "$base" -m venv --clear "$folder" ||
            die "$base cannot make an environment: install its venv module (python3-venv on Debian and Ubuntu)"
        if [[ -n $found ]]; then show_packages "$found" "$folder"; fi
        install_packages "$folder" "$requirements" ${torch[@]+"${torch[@]}"}
        touch "$folder/complete"
    fi
    if [[ -n ${3:-} ]]; then
        added=$folder/added-$(digest "$base" <"$3")
        if [[ ! -e $added ]]; then
            install_packages "$folder" "$3"
            touch "$added"
        fi
    fi
    exec 9>&-
}

# show_packages PYTHON FOLDER: let the environment at FOLDER import what PYTHON can. (A venv's own switch shows the
# system's packages, which are other ones where PYTHON is in a venv itself.)
show_packages() {
    "$1" -c 'import sys
for folder in sys.path:
    if folder.endswith(("site-packages", "dist-packages")):
        print("import site; site.addsitedir({!r})".format(folder))' \
        >"$("$2/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/beside.pth"
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

# python_with_torch [GENERATION]: the first of the user's choice, python3 and python that has a PyTorch (of the generation).
python_with_torch() {
    local candidate found
    for candidate in ${PYTHON:+"$PYTHON"} python3 python; do
        if found=$(generation_of "$candidate") && [[ ${1:-$found} == "$found" ]]; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

# python_for GENERATION: an interpreter that the generation's PyTorch installs on and that can make environments: the
# user's choice, one on the path, or one that pyenv keeps.
python_for() {
    local candidate candidates=(${PYTHON:+"$PYTHON"} python3 python) version
    release_of "$1"
    for version in "${VERSIONS[@]}"; do
        candidates+=("python$version" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python)
    done
    for candidate in "${candidates[@]}"; do
        version=$("$candidate" -c 'import ensurepip, sys, venv; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) ||
            continue
        if [[ " ${VERSIONS[*]} " == *" $version "* ]]; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

# generation_for_here: the newest generation that a Python at hand can run; the first choice where there is none.
generation_for_here() {
    local generation
    for generation in "${GENERATIONS[@]}"; do
        if python_for "$generation" >/dev/null; then
            echo "$generation"
            return
        fi
    done
    echo "${GENERATIONS[0]}"
}

# keep_torch FOLDER: constraints that pin the torch, torchvision and numpy that the environment sees already. PyTorch
# before 2.3 cannot hand its tensors to numpy 2.
keep_torch() {
    "$1/bin/python" - >"$1/constraints.txt" <<'EOF'
try:
    from importlib.metadata import PackageNotFoundError, version
except ImportError:     # Python 3.7
    from pkg_resources import DistributionNotFound as PackageNotFoundError, get_distribution
    def version(name):
        return get_distribution(name).version
found = {}
for name in ('torch', 'torchvision', 'numpy'):
    try:
        found[name] = version(name)
        print('{}=={}'.format(name, found[name]))
    except PackageNotFoundError:
        pass
if 'numpy' not in found and [int(part) for part in found.get('torch', '3.0').split('.')[:2]] < [2, 3]:
    print('numpy<2')
EOF
}

# newest_beside PYTHON PACKAGE...: NEWEST, an interpreter that sees what PYTHON does, and the newest PACKAGEs of pip.
newest_beside() {
    local base=$1 folder
    folder=$(cache_folder)/newest
    shift
    "$base" -m venv --clear "$folder" && show_packages "$base" "$folder"
    "$folder/bin/python" -m pip install --disable-pip-version-check --quiet --upgrade "$@" ||
        die "pip could not install $*"
    export NEWEST=$folder/bin/python
}
