#!/usr/bin/env bash
# Runs the GPU programs, the most important first, until SECONDS are over.
#   bash bench/gpu.sh 540                        every part, as time allows
#   bash bench/gpu.sh 540 dit-1.3b dit-14b vae   only these parts
#   SMALL=1 bash bench/gpu.sh 120                tiny sizes, to check that every part runs
# Appends all output to $OUT/bench.log (default: the current directory); lines that start with { are
# results. PYTHON is the interpreter. TMPDIR needs 30 GB for weights, or 75 GB
# for models with two experts, whose names contain a14b.
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
python=${PYTHON:-python3}
log=${OUT:-.}/bench.log
end=$((SECONDS + ${1:?seconds}))
shift
small=${SMALL:+--small}

# name and command of each part; a part that fails or times out does not stop the next one
parts=(
  "dit-1.3b     bench.dit 1.3b --torch --json"
  "dit-14b      bench.dit 14b --torch --json"
  "vae          bench.vae --torch"
  "run          bench.run --json"
  "run-a14b     bench.run --model a14b --steps 4 --guide-scale 1 --text --json"
  "run-i2v-a14b bench.run --model i2v-a14b --steps 4 --guide-scale 1 --text --json"
  "run-ti2v-5b  bench.run --model ti2v-5b --steps 40 --text --json"
  "whole-1.3b   bench.whole_peer 1.3b --json"
  "whole-a14b   bench.whole_peer a14b --json"
  "read         bench.read --json"
  "streamed-14b bench.dit 14b --streamed --json"
  "text         bench.text --json"
  "parity       bench.parity --json"
  "vace-1.3b    bench.dit 1.3b vace-1.3b --torch --json"
  "vace-14b     bench.dit 14b vace-14b --torch --json"
  "streamed-vace-14b bench.dit vace-14b --streamed --json"
  "parity-vace  bench.parity vace-1.3b --json"
  "ti2v-5b      bench.dit ti2v-5b --json"
  "kernels      bench.kernels --json"
  "trace        bench.trace 1.3b"
  "quantized    bench.dit 1.3b 14b --bits 4 --json"
  "streamed     bench.dit 1.3b --streamed --json"
  "sequential   bench.dit 1.3b --sequential-cfg --json"
  "parts-1.3b   bench.dit 1.3b --parts --json"
  "unlimited    bench.dit 1.3b --unlimited --json"
  "batches      MLX_MAX_MB_PER_BUFFER=1000 bench.dit 1.3b --unlimited --json"
  "limited      MLX_MAX_MB_PER_BUFFER=1000 bench.dit 1.3b --json"
  "parts-14b    bench.dit 14b --parts --json"
  "compiled     bench.dit 1.3b --torch --compile --json"
  "quantized-14b-streamed bench.dit 14b --bits 4 --streamed --json"
  "14b-720p     bench.dit 14b-720p --repeats 1 --json"
  "vae-layers   bench.vae --layers"
  "vae-conv     bench.vae --conv"
)

wanted() { # wanted NAME CHOSEN...: true if NAME is among CHOSEN, or CHOSEN is empty
  local name=$1 one
  shift
  [ $# -eq 0 ] && return 0
  for one in "$@"; do [ "$one" = "$name" ] && return 0; done
  return 1
}

for part in "${parts[@]}"; do
  read -r name command <<<"$part"
  wanted "$name" "$@" || continue
  left=$((end - SECONDS))
  if [ "$left" -lt 10 ]; then
    echo "== $name: no time left" | tee -a "$log"
    continue
  fi
  setting=""
  case $command in MLX_*) setting=${command%% *} command=${command#* } ;; esac
  echo "== $name: $setting $command $small" | tee -a "$log"
  start=$SECONDS
  # shellcheck disable=SC2086 # words
  env $setting timeout "$left" "$python" -m $command $small 2>&1 | tee -a "$log"
  echo "== $name: status ${PIPESTATUS[0]}, $((SECONDS - start)) s" | tee -a "$log"
done
