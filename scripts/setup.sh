#!/bin/sh
# Build .venv from requirements.lock. `make` runs this in the root of the checkout if .venv/.complete is missing or old.
#   .venv/.made-by-setup  written first: marks a folder that this script or `make clean` may remove
#   .venv/.complete       written last: without it the set-up was interrupted and starts over (uv caches downloads)
set -eu

venv=.venv
log=$venv/setup.log
disk_gib=12

is_python_ok() { # COMMAND: succeed if it is a Python in the range of pyproject.toml
    case $("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) in
        3.11 | 3.12 | 3.13) return 0 ;;
    esac
    return 1
}

find_python() { # print the first suitable command; try only $PYTHON if it is set
    for candidate in ${PYTHON:-python3 python3.12 python3.13 python3.11}; do
        if is_python_ok "$candidate"; then
            echo "$candidate"
            return
        fi
    done
}

missing=0
need() { # MESSAGE: report a missing requirement; all of them are reported before the script exits
    echo "set-up: $1" >&2
    missing=1
}

# --- Requirements, checked before anything is written ---
python=$(find_python)
if [ -z "$python" ]; then
    found=$("${PYTHON:-python3}" --version 2>&1) || found="${PYTHON:-python3} does not run"
    need "needs Python 3.11, 3.12 or 3.13, found $found; install one, or run: make cram PYTHON=/path/to/python3.12"
fi

uv=
if uv --version >/dev/null 2>&1; then
    uv=uv
elif [ -n "$python" ] && ! "$python" -c 'import ensurepip' 2>/dev/null; then
    need "$python cannot create an environment without ensurepip; run: apt install python3-venv, or install uv"
fi

if [ ! -e $venv ]; then
    free_gib=$(df -Pk . | awk 'NR == 2 { print int($4 / 1048576) }')
    if [ "$free_gib" -lt $disk_gib ]; then
        need "needs $disk_gib GiB of free disk here, found $free_gib (PyTorch with its CUDA libraries takes 6)"
    fi
fi
[ $missing -eq 0 ] || exit 1

# --- Environment ---
# One set-up at a time. Child processes inherit the lock, so a child that outlives a killed set-up is waited for as well.
exec 9<scripts/setup.sh
if ! flock -n 9; then
    echo "set-up: waiting for another set-up to finish"
    flock 9
    [ ! -e $venv/.complete ] || exit 0
fi
if [ -e $venv/.made-by-setup ] && [ ! -e $venv/.complete ]; then
    echo "set-up: the previous set-up did not finish; starting over"
    rm -rf $venv
fi
if [ ! -e $venv ]; then
    mkdir $venv
    touch $venv/.made-by-setup
fi
rm -f $venv/.complete
: >$log

child=
# A background child of a script ignores Ctrl-C, so it is terminated here.
trap '[ -z "$child" ] || kill "$child" 2>/dev/null; echo "set-up: interrupted; run make again" >&2; exit 130' INT TERM

step() { # NAME COMMAND...: run a command with its output in the log; a terminal shows the time and the log's last line
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
        echo "set-up: failed: $what; see $log, then run make again" >&2
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
    # The lock contains uv too: pip installs it with its version and hashes from there.
    awk '/^[a-z0-9]/ { wanted = /^uv==/ } wanted' requirements.lock >$venv/uv.lock
    step "uv" $venv/bin/python -m pip install --no-deps --require-hashes -r $venv/uv.lock
    uv=$venv/bin/uv
fi
# --compile-bytecode saves seconds at the first start, or at every start if PYTHONDONTWRITEBYTECODE is set.
# --prefix is needed beside --python: uv caches the interpreter of a path, and an environment that was being removed when
# uv looked is cached as the system's Python, where uv would then install.
install="$uv pip install --compile-bytecode --python $venv/bin/python --prefix $venv"
# DeepSpeed is a source package and would compile operators that cram-composer does not use.
export DS_BUILD_OPS=0
# --no-deps: the lock is complete, and newer than Composer's own ranges allow (pyproject.toml, tool.uv).
step "$(grep -c '^[a-z0-9].*==' requirements.lock) locked packages, about 3 GB to download the first time" \
    $install --no-deps --require-hashes -r requirements.lock
step "cram-composer" $install --no-deps --no-build-isolation -e .

# --- Optional: compiler and headers for torch.compile ---
# torch.compile generates C++ (C on a GPU) that includes Python.h. Without them, training runs uncompiled.
if ! command -v "${CXX:-g++}" >/dev/null 2>&1; then
    echo "note: no ${CXX:-g++}, so torch.compile will not work and training will be slower; run: apt install g++"
fi
version=$($venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
headers=$($venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("include"))')
if [ ! -e "$headers/Python.h" ]; then
    echo "note: no Python.h, so torch.compile will not work and training will be slower; run: apt install python$version-dev"
fi
touch $venv/.complete
