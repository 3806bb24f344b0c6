#!/usr/bin/env bash
# Creates .venv at the project's root from requirements.txt, and installs the project in it. Prints nothing if
# .venv is up to date, and repairs it otherwise. Needs bash and Python 3.10 to 3.13.
#
# It only empties a .venv that it has created. In another .venv, it installs packages.
#
#     scripts/setup.sh                            # the first suitable Python on the PATH
#     PYTHON=/path/to/python3 scripts/setup.sh    # this Python
#
# pip's own settings (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, pip.conf, ...) apply.
set -euo pipefail

root="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"
venv="$root/.venv"
done_stamp="$venv/.setup-done"             # contains the fingerprint of the sources of .venv
unfinished="$venv/.setup-unfinished"       # exists while .venv is created or changed
made_here="$venv/.setup-made-this"         # exists if this script created .venv
lock_file="$venv/.setup-lock"
log="$venv/setup.log"
again="$(printf '%q' "$0")"                # the command of this script, for messages

say() { printf 'setup: %s\n' "$*" >&2; }

die() {
    say "error: $1"
    shift
    if (($#)); then printf '    %s\n' "$@" >&2; fi
    exit 1
}

# Two hashes: of the location and the Python of .venv, and of the installed requirements.
fingerprint() { # python
    "$1" -I -S -c '
import hashlib, pathlib, sys, sysconfig
root = pathlib.Path(sys.argv[1])
where = "\n".join([str(root), sys.implementation.cache_tag, sysconfig.get_platform()]).encode()
what = b"".join((root / name).read_bytes() for name in ("requirements.txt", "setup.py"))
print(hashlib.sha256(where).hexdigest(), hashlib.sha256(what).hexdigest())' "$root"
}

is_up_to_date() {
    [[ -f $done_stamp && ! -e $unfinished && -x $venv/bin/srl ]] || return 1
    local now
    now="$(fingerprint "$venv/bin/python" 2>/dev/null)" || return 1
    [[ $now == "$(<"$done_stamp")" ]] || return 1
    [[ -z ${PYTHON:-} || $now == "$(fingerprint "$PYTHON" 2>/dev/null)" ]]
}

# Sets `python` to $PYTHON, or the Python of an existing .venv, or the first suitable one on the PATH.
choose_python() {
    local candidates=("$venv/bin/python" python3 python3.13 python3.12 python3.11 python3.10 python)
    if [[ -n ${PYTHON:-} ]]; then candidates=("$PYTHON"); fi
    local seen=() without_venv="" candidate answer kind version venv_module executable
    for candidate in "${candidates[@]}"; do
        # Works in any Python, even old ones. A virtual environment prints its base Python; in Python 3.10
        # sys._base_executable is the environment's own
        answer="$("$candidate" -E -s -c '
import os, platform, sys
try:
    import ensurepip, venv
    has_venv = "yes"
except ImportError:
    has_venv = "no"
path = ""
if getattr(sys, "base_prefix", sys.prefix) != sys.prefix:
    path = os.path.join(sys.base_prefix, "bin", "python%d.%d" % tuple(sys.version_info[:2]))
    if not os.access(path, os.X_OK):
        path = getattr(sys, "_base_executable", "")
print("%s %d.%d.%d %s %s" % ((platform.python_implementation(),) + tuple(sys.version_info[:3]) + (has_venv, path)))
' 2>/dev/null)" || answer=""
        read -r kind version venv_module executable <<<"$answer" || true
        if [[ ! $version =~ ^[0-9]+\.[0-9]+\.[0-9]+$ ]]; then
            if [[ -n ${PYTHON:-} ]]; then seen+=("$candidate: does not run as a Python"); fi
            continue
        fi
        seen+=("$candidate: $kind $version")
        executable="${executable:-$candidate}"
        [[ $kind == CPython && $version =~ ^3\.(10|11|12|13)\. ]] || continue
        if [[ $venv_module == yes ]]; then
            python="$executable"
            python_version="$version"
            return
        fi
        if [[ -z $without_venv ]]; then without_venv="$executable (Python $version)"; fi
    done
    if [[ -n $without_venv ]]; then die_without_venv "$without_venv"; fi
    if ((${#seen[@]} == 0)); then seen=("none"); fi
    die "no suitable Python: this project needs CPython 3.10, 3.11, 3.12 or 3.13." \
        "Seen:" "${seen[@]/#/  }" \
        "(Box2D has no ready-made build for Python 3.14 and later.)" \
        "To get one: apt install python3 python3-venv (Debian, Ubuntu), dnf install python3.12 (Fedora)," \
        "brew install python@3.12 (macOS), or conda, pyenv or uv where you have no root." \
        "Then name it if it is not on the PATH: PYTHON=/path/to/python3 $again"
}

die_without_venv() { # python
    die "$1 cannot make virtual environments: its modules venv and ensurepip are missing." \
        "Debian, Ubuntu: apt install python3-venv" \
        "Without root: name another Python (from conda, pyenv, uv, ...): PYTHON=/path/to/python3 $again"
}

# The kernel releases the lock with the last process that has the file open, however this script ends.
take_lock() {
    mkdir -p "$venv" || die "cannot make $venv: is the folder writable?"
    exec 9>>"$lock_file" || die "cannot write in $venv: is the folder writable?"
    "$python" -I -S -c '
import fcntl, sys
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("setup: another set-up is at work in this folder; waiting for it to end", file=sys.stderr)
    fcntl.flock(9, fcntl.LOCK_EX)
except OSError as error:
    print(f"setup: this file system has no locks ({error}); do not run two set-ups at once", file=sys.stderr)'
}

# Whether packages can be installed in the existing .venv. After an interrupted installation they cannot: a
# killed pip leaves packages that only look installed.
is_reusable() {
    [[ ! -e $unfinished ]] || return 1
    "$venv/bin/python" -I -m pip --version >/dev/null 2>&1 || return 1
    local here base stamped
    here="$(fingerprint "$venv/bin/python")" && base="$(fingerprint "$python")" || return 1
    [[ ${here%% *} == "${base%% *}" ]] || return 1
    # Without a stamp it was created by hand
    [[ -f $done_stamp ]] || return 0
    stamped="$(<"$done_stamp")"
    [[ ${here%% *} == "${stamped%% *}" ]]
}

# Whether .venv may be emptied: this script created it, or it contains only the lock.
is_ours() {
    [[ -e $venv || -L $venv ]] || return 0
    [[ -d $venv && ! -L $venv ]] || return 1
    # In this order: another set-up makes the file before all others
    [[ -z "$(find "$venv" -mindepth 1 ! -name "${lock_file##*/}" -print -quit)" || -f $made_here ]]
}

die_not_ours() {
    die "$venv cannot be used, and is left as it is: this script did not make it." \
        "Move it away, then run $again again."
}

empty_venv() {
    local entry
    shopt -s dotglob nullglob
    for entry in "$venv"/*; do
        case "$entry" in
            "$lock_file" | "$unfinished" | "$made_here") ;;
            *) rm -rf -- "$entry" ;;
        esac
    done
    shopt -u dotglob nullglob
}

# Runs a command, logs its output, prints only large downloads, and explains a failure.
run_logged() { # what, command...
    local what="$1"
    shift
    {
        local status=0
        "$@" 2>&1 || status=$?
        printf 'exit status %s\n' "$status"
    } | {
        local line last=() text
        while IFS= read -r line; do
            if [[ $line == Ignoring*"markers"* ]]; then continue; fi # the pins of another Python
            { printf '%s\n' "$line" >>"$log"; } 2>/dev/null || true
            if [[ $line =~ Downloading\ (.*/)?([^/\ ]+)\ \(([0-9.]+\ GB|[0-9]{2,}\.?[0-9]*\ MB)\) ]]; then
                text="${BASH_REMATCH[2]%%-cp*}"
                say "  downloading ${text%%-py*} (${BASH_REMATCH[3]})"
            elif [[ $what == *packages* && $line == "Installing collected packages: "* ]]; then
                say "  unpacking"
            fi
            last+=("$line")
            if ((${#last[@]} > 300)); then last=("${last[@]:200}"); fi
        done
        if [[ ${last[${#last[@]} - 1]} == "exit status 0" ]]; then return 0; fi
        text="$(printf '%s\n' "${last[@]}")"
        say "error: $what failed. Its last lines:"
        local from=$((${#last[@]} > 10 ? ${#last[@]} - 10 : 0))
        printf '    | %s\n' "${last[@]:from}" >&2
        explain_failure "$text" >&2
        return 1
    }
}

explain_failure() { # output
    local hints=()
    case "$1" in
        *"No space left on device"* | *"Disk quota exceeded"* | *"Errno 28"* | *"Errno 122"*)
            hints=("The disk is full: the packages take about 2 GB, with CUDA about 8 GB, and as much while they"
                "are unpacked. Make room, or name a roomier folder: TMPDIR=... for unpacking,"
                "PIP_CACHE_DIR=... for pip's downloads.") ;;
        *"Temporary failure in name resolution"* | *"Name or service not known"* | *"NewConnectionError"* | \
            *"Network is unreachable"* | *"Connection refused"* | *"ConnectTimeout"* | *"ReadTimeout"* | \
            *"Read timed out"* | *"ProxyError"* | *"SSLError"* | *"Connection broken"* | *"Max retries exceeded"* | \
            *"nodename nor servname"*)
            hints=("The package index could not be reached: check the network, or the proxy (HTTPS_PROXY=...),"
                "or name an index that can be reached (PIP_INDEX_URL=...).") ;;
        *"No matching distribution found"*)
            hints=("The package index has no build of that package for Python $python_version on this machine;"
                "another Python (PYTHON=/path/to/python3) or another index (PIP_EXTRA_INDEX_URL=...) may have.") ;;
    esac
    if ((${#hints[@]})); then printf '    %s\n' "${hints[@]}"; fi
    printf '    Then run %s again: what pip downloaded is kept. Whole log: %s\n' "$again" "$log"
}

announce() {
    say "making .venv with Python $python_version; downloading and installing takes some minutes, this once"
    if [[ $(uname -s) == Linux && ! -e /dev/nvidiactl && -z ${PIP_EXTRA_INDEX_URL:-}${PIP_INDEX_URL:-} ]]; then
        say "no NVIDIA GPU seen. The package index's torch for Linux may bring CUDA along (some GB); PyTorch's"
        say "installation page names an index with a small CPU build: PIP_EXTRA_INDEX_URL=THAT_INDEX $again"
    fi
}

pip_install() { # what, arguments...
    local what="$1"
    shift
    run_logged "$what" "$venv/bin/python" -I -u -m pip install \
        --disable-pip-version-check --no-input --no-user "$@"
}

if is_up_to_date; then exit 0; fi
python="" python_version=""
choose_python
is_ours || is_reusable || die_not_ours
take_lock
if is_up_to_date; then exit 0; fi # another set-up did the work meanwhile

rm -f -- "$log"
if is_reusable; then
    say "bringing .venv up to date; this can take some minutes"
    : >"$unfinished"
    rm -f -- "$done_stamp"
else
    is_ours || die_not_ours
    announce
    : >"$made_here"
    : >"$unfinished"
    empty_venv
    run_logged "making the virtual environment" "$python" -I -m venv --without-pip "$venv"
    run_logged "putting pip into the virtual environment" "$venv/bin/python" -I -m ensurepip --default-pip
fi
say "installing the packages of requirements.txt"
pip_install "installing the packages of requirements.txt" -r "$root/requirements.txt"
say "installing the project"
pip_install "installing the project" --no-deps --no-build-isolation -e "$root"
fingerprint "$venv/bin/python" >"$done_stamp"
rm -f -- "$unfinished"
say "done"
