#!/usr/bin/env bash
# Sets up, then runs the sweep configs/sweeps/continuous_srl.yml; arguments go to `srl sweep`.
set -euo pipefail
root="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)"
"$root/scripts/setup.sh"
exec "$root/.venv/bin/srl" sweep "$root/configs/sweeps/continuous_srl.yml" "$@"
