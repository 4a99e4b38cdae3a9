# shellcheck shell=bash
# The Ascend environment: CANN's own set_env.sh, and the variables that a run on NPUs wants.

# source_npu_environment [ROOT]: make CANN's libraries findable and set what a run on NPUs wants, unless the user has.
# Does nothing on a machine without NPUs. ROOT stands for / in the tests.
source_npu_environment() {
    local root=${1:-} info install=/usr/local/Ascend kind found=
    [[ -n $(compgen -G "$root/dev/davinci*") ]] || return 0
    info=$root/etc/Ascend/ascend_cann_install.info
    if [[ -r $info ]]; then install=$(sed -n 's/^Install_Path=//p' "$info" | head -n 1); fi
    for kind in ascend-toolkit nnae cann; do     # the last since CANN 8.5
        if [[ -r $root$install/$kind/set_env.sh ]]; then
            found=$root$install/$kind/set_env.sh
            break
        fi
    done
    if [[ -n $found ]]; then
        set +eu     # CANN's script reads variables that may be unset
        # shellcheck disable=SC1090
        source "$found"
        set -eu
    elif [[ -z ${ASCEND_TOOLKIT_HOME:-${ASCEND_HOME_PATH:-}} ]]; then
        echo "warning: this machine has NPUs, but $install/ascend-toolkit/set_env.sh is not there: install CANN, or" \
            "source its set_env.sh first" >&2
    fi
    export HCCL_WHITELIST_DISABLE=${HCCL_WHITELIST_DISABLE:-1}
    export HCCL_CONNECT_TIMEOUT=${HCCL_CONNECT_TIMEOUT:-1200}
    export COMBINED_ENABLE=${COMBINED_ENABLE:-1}
    export ASCEND_GLOBAL_LOG_LEVEL=${ASCEND_GLOBAL_LOG_LEVEL:-3}
    export ASCEND_SLOG_PRINT_TO_STDOUT=${ASCEND_SLOG_PRINT_TO_STDOUT:-0}
    export MAE_BIND_CORES=${MAE_BIND_CORES:-1}      # each process to its share of the cores, see util/devices/host.py
}
