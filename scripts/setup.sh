#!/bin/sh
# Builds .venv from requirements.lock. `make` runs it from the top of the checkout when .venv/.complete is missing or old.
#   .venv/.made-by-setup  written first: this script made the folder, so it may start again or `make clean` may remove it
#   .venv/.complete       written last: an interrupted set-up has none and is built again (downloads stay in uv's cache)
set -eu

venv=.venv
log=$venv/setup.log
disk_gib=12

is_python_ok() { # COMMAND: true if it is a Python in the range of pyproject.toml
    case $("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) in
        3.10 | 3.11 | 3.12) return 0 ;;
    esac
    return 1
}

find_python() { # prints the first suitable command; $PYTHON alone is tried when it is set
    for candidate in ${PYTHON:-python3 python3.12 python3.11 python3.10}; do
        if is_python_ok "$candidate"; then
            echo "$candidate"
            return
        fi
    done
}

missing=0
need() { # MESSAGE: something without which there is no environment; all of them are listed before giving up
    echo "set-up: $1" >&2
    missing=1
}

# --- What must be there. Nothing is written before all of it is. ---
python=$(find_python)
if [ -z "$python" ]; then
    found=$("${PYTHON:-python3}" --version 2>&1) || found="${PYTHON:-python3} does not run"
    need "Python 3.10, 3.11 or 3.12 is needed ($found): install one, or name it: make cram PYTHON=/path/to/python3.12"
fi

uv=
if uv --version >/dev/null 2>&1; then
    uv=uv
elif [ -n "$python" ] && ! "$python" -c 'import ensurepip' 2>/dev/null; then
    need "$python cannot make an environment (it has no ensurepip): apt install python3-venv, or install uv"
fi

if [ ! -e $venv ]; then
    free_gib=$(df -Pk . | awk 'NR == 2 { print int($4 / 1048576) }')
    if [ "$free_gib" -lt $disk_gib ]; then
        need "$disk_gib GiB of free disk are needed here, there are $free_gib (PyTorch with its CUDA libraries takes 6)"
    fi
fi
[ $missing -eq 0 ] || exit 1

# --- The environment. ---
# One set-up at a time. What it starts inherits the lock, so a child that outlives a killed set-up is waited for as well.
exec 9<scripts/setup.sh
if ! flock -n 9; then
    echo "set-up: waiting for another one to end"
    flock 9
    [ ! -e $venv/.complete ] || exit 0
fi
if [ -e $venv/.made-by-setup ] && [ ! -e $venv/.complete ]; then
    echo "set-up: the last one did not finish; starting again"
    rm -rf $venv
fi
if [ ! -e $venv ]; then
    mkdir $venv
    touch $venv/.made-by-setup
fi
rm -f $venv/.complete
: >$log

child=
# A background child of a script ignores Ctrl-C, so it is ended here.
trap '[ -z "$child" ] || kill "$child" 2>/dev/null; echo "set-up: interrupted; run make again" >&2; exit 130' INT TERM

step() { # WHAT COMMAND...: output goes to the log; on a terminal one line shows the seconds and the log's last line
    what=$1
    shift
    echo "+ $*" >>$log
    start=$(date +%s)
    "$@" >>$log 2>&1 </dev/null &
    child=$!
    while [ -t 1 ] && kill -0 "$child" 2>/dev/null; do
        printf '\r\033[Kset-up: %s, %s s  %.50s' "$what" $(($(date +%s) - start)) "$(tail -n 1 $log)"
        sleep 1
    done
    status=0
    wait "$child" || status=$?
    child=
    [ -t 1 ] && printf '\r\033[K'
    if [ $status -ne 0 ]; then
        tail -n 5 $log >&2
        echo "set-up: failed at: $what. The log is $log; make starts over" >&2
        exit 1
    fi
    echo "set-up: $what, $(($(date +%s) - start)) s"
}

if [ ! -x $venv/bin/python ]; then
    if [ -n "$uv" ]; then
        step "new environment" "$python" -m venv --without-pip $venv
    else
        step "new environment" "$python" -m venv $venv
    fi
fi
if [ -z "$uv" ]; then
    # uv is in the lock like everything else: take its pin and hashes from there, pip does the rest.
    awk '/^[a-z0-9]/ { wanted = /^uv==/ } wanted' requirements.lock >$venv/uv.lock
    step "uv" $venv/bin/python -m pip install --no-deps --require-hashes -r $venv/uv.lock
    uv=$venv/bin/uv
fi
# Python would compile what it imports at every first use, or at every use where PYTHONDONTWRITEBYTECODE is set: seconds
# of each start.
# --prefix says twice where things go: uv remembers what it once saw behind a path, and an environment that was being
# removed at that moment would be remembered as the system's Python, and everything installed there.
install="$uv pip install --compile-bytecode --python $venv/bin/python --prefix $venv"
# DeepSpeed comes as source and would compile operators for this machine, none of which is used.
export DS_BUILD_OPS=0
step "$(grep -c '^[a-z0-9].*==' requirements.lock) locked packages, about 3 GB to download the first time" \
    $install --require-hashes -r requirements.lock
step "cram-composer" $install --no-deps --no-build-isolation -e .

# --- What training is slower without. ---
# torch.compile writes C++ (on a GPU: C) that includes Python.h; where it cannot, training runs uncompiled.
if ! command -v "${CXX:-g++}" >/dev/null 2>&1; then
    echo "note: no ${CXX:-g++}, so torch.compile will not work and training will be slower: apt install g++"
fi
version=$($venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
headers=$($venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("include"))')
if [ ! -e "$headers/Python.h" ]; then
    echo "note: no Python.h, so torch.compile will not work and training will be slower: apt install python$version-dev"
fi
touch $venv/.complete
