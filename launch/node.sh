#!/usr/bin/env bash
# Train on one machine, with all its devices, and start again until the run is done.
#
#   launch/node.sh gpt2_124m [any flag of gptjax.train]
#
# Arithmetic for gpt2_124m: 124.4M parameters x 10e9 tokens x 6 = 7.5e18 FLOP, and 0.6e18 for causal
# attention. At 40% of 989 TFLOP/s (one H100, bf16) that is 5.6 hours; on eight, 42 minutes.
#
# Exit codes of a run: 0 is done, 2 is a mistake in the command, 130 and 143 a stop asked for by Ctrl-C
# and SIGTERM: those end the script. Everything else is tried again, from the last checkpoint, up to
# RETRIES times.
set -u

if [ $# -lt 1 ]; then
  echo "usage: launch/node.sh CONFIG [flags of gptjax.train]" >&2
  exit 2
fi
config=$1
shift
retries=${RETRIES:-10}
python=${PYTHON:-python}

for attempt in $(seq 0 "$retries"); do
  "$python" -m gptjax.train --config "$config" "$@"
  code=$?
  case $code in
    0 | 2 | 130 | 143) exit $code ;;
  esac
  echo "the run ended with code $code; attempt $((attempt + 1)) of $retries follows in 10 seconds" >&2
  sleep 10
done
exit "$code"
