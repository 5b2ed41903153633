#!/usr/bin/env bash
# Train on one machine, with all its devices, and restart until the run is done.
#
#   launch/node.sh CONFIG [any flag of gptjax.train]
#   PROCESSES=8 launch/node.sh CONFIG ...     several processes, each with its share of the GPUs
#
# Arithmetic for gpt2_124m: 124,439,808 parameters, 10e9 tokens in 19,073 steps of 2^19. A token takes
# 6 x 124.4e6 FLOP, and 0.06e9 for causal attention: 0.8e9; all take 8.0e18. One H100 (989 TFLOP/s in
# bf16) at an assumed 36% needs 6.2 hours, eight 47 minutes; at 2.50 $ a GPU-hour either costs 16 $.
# No GPU has been measured yet.
#
# One process with all devices is the rule, and the fastest way to a small model. Several processes
# help to debug what happens between nodes, or if one process cannot feed all devices.
#
# Exit codes of a run: 0 is done; 1 and 2 are mistakes that another attempt would repeat; 129, 130, 138
# and 143 are stops by SIGHUP, Ctrl-C, SIGUSR1 and SIGTERM, after a save. These end the script.
# Everything else (a crash, a killed process, a hang, a failed disk or link) is tried again from the
# last checkpoint, up to RETRIES times, after PAUSE seconds. If one of several processes dies, all are
# ended and restarted. Under nohup SIGHUP does nothing.
set -um # -m: each process has its own group, so Ctrl-C reaches it only through this script

if [ $# -lt 1 ]; then
  echo "usage: launch/node.sh CONFIG [flags of gptjax.train]" >&2
  exit 2
fi
config=$1
shift
retries=${RETRIES:-10}
pause=${PAUSE:-10}
processes=${PROCESSES:-1}
python=${PYTHON:-python}
if ! [[ $processes =~ ^[1-9][0-9]*$ && $retries =~ ^[0-9]+$ ]]; then
  echo "PROCESSES must be 1 or more and RETRIES 0 or more, not '$processes' and '$retries'" >&2
  exit 2
fi
if ! command -v "$python" >/dev/null; then
  echo "there is no $python: set PYTHON to the interpreter that gptjax is installed in" >&2
  exit 2
fi
grace=5 # seconds for the others to report and end after the first one has died
here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=launch/env.sh
. "$here/env.sh"

pids=()
stopped=0
# shellcheck disable=SC2329 # the traps call it
forward() {
  stopped=$1
  kill -s "$2" "${pids[@]}" 2>/dev/null
}
trap 'forward 143 TERM' TERM
trap 'forward 130 INT' INT
trap 'forward 129 HUP' HUP # has no effect under nohup, which ignores it for the run as well
trap 'forward 138 USR1' USR1

# not in the foreground, where Ctrl-C would end the sleep instead of reaching the trap
wait_seconds() {
  sleep "$1" &
  wait $!
}

free_port() {
  "$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# the GPUs of process $1, separated by commas; empty without GPUs
share_of_gpus() {
  local all=() each
  IFS=, read -ra all <<<"${CUDA_VISIBLE_DEVICES:-$(seq -s, 0 $((gpus - 1)))}"
  each=$((${#all[@]} / processes))
  (
    IFS=,
    echo "${all[*]:$(($1 * each)):each}"
  )
}

start_all() {
  local port i share
  pids=()
  if [ "$processes" -eq 1 ]; then
    "$python" -m gptjax.train --config "$config" "$@" &
    pids=($!)
    return
  fi
  port=$(free_port)
  for ((i = 0; i < processes; i++)); do
    share=()
    [ "$gpus" -eq 0 ] || share=(env "CUDA_VISIBLE_DEVICES=$(share_of_gpus "$i")")
    "${share[@]}" "$python" -m gptjax.train --config "$config" "$@" \
      --coordinator "127.0.0.1:$port" --processes "$processes" --process "$i" &
    pids+=($!)
  done
}

# Wait until all have ended, and set `code`, which decides what comes next.
wait_for_all() {
  local alive i pid one wanted failed_at=-1 codes=() ended=()
  while true; do
    alive=0
    for ((i = 0; i < ${#pids[@]}; i++)); do
      [ -z "${ended[i]:-}" ] || continue
      if kill -0 "${pids[i]}" 2>/dev/null; then
        alive=1
        continue
      fi
      wait "${pids[i]}"
      codes[i]=$?
      ended[i]=yes
      if [ "${codes[i]}" -ne 0 ] && [ "$failed_at" -lt 0 ]; then
        failed_at=$SECONDS
      fi
    done
    [ "$alive" -eq 1 ] || break
    if [ "$failed_at" -ge 0 ] && [ $((SECONDS - failed_at)) -gt "$grace" ]; then
      for pid in "${pids[@]}"; do kill -KILL "$pid" 2>/dev/null; done
    fi
    wait_seconds 0.2
  done
  code=0
  for one in "${codes[@]}"; do
    [ "$one" -le "$code" ] || code=$one
  done
  for wanted in 138 129 143 130 2 1; do # a mistake explains why the others died
    for one in "${codes[@]}"; do
      [ "$one" -ne "$wanted" ] || code=$one
    done
  done
}

if [ "$processes" -gt 1 ] && [ $((gpus % processes)) -ne 0 ]; then
  echo "PROCESSES=$processes cannot share $gpus GPUs equally" >&2
  exit 2
fi
for ((attempt = 0; attempt <= retries; attempt++)); do
  start_all "$@"
  wait_for_all
  case $code in
    0 | 1 | 2 | 129 | 130 | 138 | 143) exit "$code" ;;
  esac
  [ "$stopped" -eq 0 ] || exit "$stopped"
  if [ "$attempt" -lt "$retries" ]; then
    echo "the run ended with code $code; attempt $((attempt + 1)) of $retries follows in $pause seconds" >&2
    wait_seconds "$pause"
    [ "$stopped" -eq 0 ] || exit "$stopped"
  fi
done
exit "$code"
