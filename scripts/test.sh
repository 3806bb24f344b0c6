#!/usr/bin/env bash
# Lint, format, types, tests: runs all four, then says which failed. Arguments go to pytest.
set -euo pipefail

case "${1-}" in
-h | --help)
    cat <<'EOF'
Usage: scripts/test.sh [PYTEST OPTIONS]

Runs ruff check, ruff format --check, mypy and all tests, then says which failed. The first call makes .venv.

Examples:
  scripts/test.sh                               everything
  scripts/test.sh -m 'not slow'                 without the slow tests
  scripts/test.sh tests/test_losses.py -k sppo  some tests
EOF
    exit 0
    ;;
esac

CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

# The tests run in parallel processes: more threads in each would only get in one another's way
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 NUMEXPR_NUM_THREADS=1

scripts/setup.sh

failed=()
step() { # name, command...
    local name="$1"
    shift
    printf '== %s\n' "$name"
    "$@" || failed+=("$name")
}

python=.venv/bin/python
step "ruff check" "$python" -m ruff check
step "ruff format" "$python" -m ruff format --check
step "mypy" "$python" -m mypy
# Many tests wait for processes: four at once keep two cores busy. With worksteal each process starts with tests
# that follow one another, which share fixtures, and none is left with the long ones at the end.
step "pytest" "$python" -m pytest -n 4 --dist worksteal "$@"

if ((${#failed[@]})); then
    printf 'FAILED:'
    printf ' %s;' "${failed[@]}"
    printf '\n'
    exit 1
fi
printf 'ok: ruff check, ruff format, mypy, pytest\n'
