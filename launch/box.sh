#!/usr/bin/env bash
# The far side of launch/ssh.sh: each action on a rented machine. Its text travels with every call, so
# a bare machine needs nothing but bash and what every Ubuntu has.
#
#   box.sh ACTION DIRECTORY PYTHON CPU [words of the action]
#
# Lines for ssh.sh begin with `gptjax:` on standard output; everything for a person goes to standard
# error. DIRECTORY/.launch holds what this script knows: the log of the run, its process, how it ended,
# its interpreter. A run holds the lock on .launch/running as long as any of its processes lives.
set -u

action=$1 cpu=$4
case $2 in
  /*) dir=$2 ;;
  *) dir=$HOME/$2 ;;
esac
state=$dir/.launch
python=$3
if [ -z "$python" ]; then # that of the last start, if it is still there
  python=$(cat "$state/python" 2>/dev/null)
  [ -x "$(command -v "$python")" ] || python=''
fi
shift 4
UNAVAILABLE=69 ABSENT=66 DISK=74 BUSY=75 CONFLICT=1

fail() { # CODE MESSAGE
  echo "error: $2" >&2
  exit "$1"
}

tell() { # KEY VALUE: a line for ssh.sh
  printf 'gptjax:%s\t%s\n' "$1" "$2"
}

# CODE SAID MESSAGE: fail with what a program said, and with another code if it was about the disk
fail_because() {
  local reason
  if reason=$(grep -m 1 -E 'No space left|File too large|Wrote only|quota exceeded|Read-only file system' <<<"$2"); then
    fail "$DISK" "$3: the disk of this machine is full or cannot be written ($reason): make room at $dir, and run the same command again"
  fi
  fail "$1" "$3: $(grep -v '^ *$' <<<"$2" | tail -n 1)"
}

free_megabytes() {
  local place=$dir free
  while [ ! -e "$place" ]; do place=$(dirname "$place"); done
  df -Pk "$place" | {
    read -r _
    read -r _ _ _ free _
    echo $((free / 1024))
  }
}

is_running() { # with a shared lock, so that two who look at once do not see each other
  [ -e "$state/running" ] && ! flock -s -n "$state/running" true
}

refuse_while_running() {
  ! is_running || fail "$CONFLICT" "a run is under way on this machine: $(cat "$state/words"); stop it first with --stop"
}

# What the machine is

has_nvidia_device() {
  [ -n "$(lspci -n -d 10de: 2>/dev/null)" ] || grep -qs 0x10de /sys/bus/pci/devices/*/vendor
}

check_gpus() {
  local said name driver capability extra major gpus
  local other="or rent a machine whose image has one; --cpu trains without a GPU"
  if ! command -v nvidia-smi >/dev/null; then
    has_nvidia_device || fail "$UNAVAILABLE" "this machine has no NVIDIA GPU: rent one that has; --cpu trains without a GPU"
    fail "$UNAVAILABLE" "this machine has an NVIDIA GPU but no driver (no nvidia-smi): sudo apt-get install -y nvidia-driver-580-server, then reboot, $other"
  fi
  if ! said=$(nvidia-smi --query-gpu=driver_version,name --format=csv,noheader 2>&1); then
    case $said in
      *"No devices"*) fail "$UNAVAILABLE" "this machine has a driver but no NVIDIA GPU (nvidia-smi: $said): rent one that has; --cpu trains without a GPU" ;;
      *) fail "$UNAVAILABLE" "the NVIDIA driver of this machine does not work (nvidia-smi: ${said%%$'\n'*}): reboot it, install the driver again, $other" ;;
    esac
  fi
  gpus=$(grep -c . <<<"$said")
  IFS=, read -r driver name <<<"${said%%$'\n'*}"
  name=${name# }
  major=${driver%%.*}
  capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null) || capability=
  capability=${capability%%$'\n'*}
  case $major in '' | *[!0-9]*) fail "$UNAVAILABLE" "nvidia-smi gives no version of the driver, but: $said" ;; esac
  [ "$major" -ge 525 ] || fail "$UNAVAILABLE" "driver $driver is too old for $name: CUDA 12 needs 525 or newer, and CUDA 13 needs 580: sudo apt-get install -y nvidia-driver-580-server, then reboot, $other"
  extra=cuda12
  [ "$major" -lt 580 ] || extra=cuda13
  case $capability in
    # Maxwell, Pascal and Volta: CUDA 13 begins with Turing, and so does cuDNN after 9.10
    5.* | 6.* | 7.0 | 7.2) extra=cuda12 pinned=nvidia-cudnn-cu12==9.10.2.21 ;;
    10.*)
      [ "$extra" = cuda13 ] || echo "warning: $name needs CUDA 13, because the cuBLAS of CUDA 12 can corrupt data there, and CUDA 13 needs driver 580 or newer, not $driver" >&2
      ;;
  esac
  extras=$extra,$extras
  device="$gpus x $name, driver $driver, $extra"
}

# sets found and found_version to the first Python that can make an environment, else seen or broken
find_python() {
  local candidate version
  for candidate in python3.12 python3.13 python3.11 python3 python; do
    command -v "$candidate" >/dev/null || continue
    version=$("$candidate" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null </dev/null) || continue
    case $version in
      2.* | 3.[0-9].* | 3.10.*) seen=${seen:-$candidate is $version} ;;
      *)
        if "$candidate" -c 'import ensurepip, venv' 2>/dev/null </dev/null; then
          found=$candidate found_version=$version
          return 0
        fi
        broken=${broken:-$candidate}
        ;;
    esac
  done
  return 1
}

check_python() {
  local install="sudo apt-get update && sudo apt-get install -y" seen='' broken=''
  if [ -n "$python" ]; then
    found=$python
    found_version=$("$python" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null </dev/null) ||
      fail "$UNAVAILABLE" "there is no Python at PYTHON=$python on this machine"
    return
  fi
  find_python && return
  if [ -n "$broken" ]; then
    fail "$UNAVAILABLE" "$broken of this machine cannot make environments: $install $("$broken" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
  fi
  fail "$UNAVAILABLE" "this machine has no Python 3.11 or newer${seen:+ ($seen)}: $install python3.12 python3.12-venv (on Ubuntu 22.04 python3.11 python3.11-venv), or name one with PYTHON=/path/to/python"
}

check() {
  local free needed=1000 found='' found_version='' device="no GPU" pinned='' extras=hub,gpt1 tool
  [ "$(uname -s)" = Linux ] || fail "$UNAVAILABLE" "this machine runs $(uname -s), not Linux"
  for tool in flock setsid tar cksum tail; do
    command -v "$tool" >/dev/null || fail "$UNAVAILABLE" "this machine has no $tool: sudo apt-get update && sudo apt-get install -y util-linux coreutils tar"
  done
  if [ -e "$dir" ] && [ ! -e "$state" ] && [ -n "$(ls -A "$dir" 2>/dev/null)" ]; then
    fail "$CONFLICT" "$dir of this machine is not empty and was not made by launch/ssh.sh: choose another DIRECTORY"
  fi
  [ "$cpu" = yes ] || check_gpus
  check_python
  free=$(free_megabytes)
  if [ -z "$python" ] && [ ! -e "$dir/.venv/made" ]; then
    needed=10000
    [ "$cpu" != yes ] || needed=3000
  fi
  [ "$free" -ge "$needed" ] || fail "$DISK" "this machine has $free MB free at $dir, and setting up needs $needed MB before any data: free some, rent more disk, or choose another DIRECTORY"
  mkdir -p "$state" 2>/dev/null || fail "$DISK" "cannot make $state on this machine: choose another DIRECTORY"
  echo "box      $device, Python $found_version, $((free / 1000)) GB free" >&2
  tell directory "$dir"
  tell python "$found"
  tell extras "$extras"
  tell pinned "$pinned"
  if is_running; then
    tell running "$(cat "$state/words" 2>/dev/null)"
  fi
  tell checked yes
}

# What goes onto it

# the files of the checkout, as a compressed archive on standard input
tree() {
  local new=$state/tree entry name said
  refuse_while_running
  rm -rf "$new"
  mkdir -p "$new"
  if ! said=$(tar -xzf - -C "$new" 2>&1); then
    rm -rf "$new"
    fail_because "$DISK" "$said" "the checkout could not be copied"
  fi
  [ -e "$new/gptjax/train.py" ] || fail "$DISK" "the checkout arrived incomplete: run the same command again"
  for entry in "$new"/* "$new"/.[!.]*; do
    name=$(basename "$entry")
    case $name in runs | data | .venv | .launch | '*' | '.[!.]*') continue ;; esac
    rm -rf "${dir:?}/$name"
    mv "$entry" "$dir/$name"
  done
  rm -rf "$new"
}

install() { # EXTRAS PINNED PYTHON
  local wanted="$1 $2 $3" sources said constraints=constraints.txt
  cd "$dir" || exit
  exec 8>"$state/lock"
  flock -n 8 || { echo "waiting  for another installation on this machine" >&2 && flock 8; }
  if [ -n "$python" ]; then
    said=$("$python" -c 'import jax, flax, optax, orbax.checkpoint, grain, tyro, tiktoken' 2>&1 </dev/null) ||
      fail_because "$UNAVAILABLE" "$said" "PYTHON=$python lacks what gptjax needs"
    { echo "$python" >"$state/python"; } 2>/dev/null || fail "$DISK" "cannot write to $state of this machine"
    return
  fi
  sources=$(cat pyproject.toml constraints.txt | cksum)
  if [ "$(cat .venv/made 2>/dev/null)" = "$wanted"$'\n'"$sources" ]; then
    echo "python   .venv is as it should be" >&2
    return
  fi
  echo "python   installing gptjax[$1] into .venv, which takes minutes" >&2
  if [ "$(head -n 1 .venv/made 2>/dev/null)" != "$wanted" ]; then # two CUDAs in one place do not work
    said=$("$3" -m venv --clear .venv 2>&1 </dev/null) || fail_because "$UNAVAILABLE" "$said" "$3 cannot make an environment"
  fi
  case $1 in
    *trackio*) # it takes no Pillow as new as the one that is pinned
      constraints=.venv/constraints.txt
      grep -v '^pillow==' constraints.txt >"$constraints" || fail "$DISK" "cannot write to $dir/.venv of this machine"
      ;;
  esac
  # shellcheck disable=SC2086 # no pin is no word
  said=$(.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input -c "$constraints" -e ".[$1]" $2 2>&1 </dev/null) ||
    fail_because "$UNAVAILABLE" "$said" "pip could not install gptjax[$1]"
  printf '%s\n%s\n' "$wanted" "$sources" >.venv/made || fail "$DISK" "cannot write to $dir/.venv of this machine"
}

interpreter() {
  python=${python:-$dir/.venv/bin/python}
  [ -x "$(command -v "$python")" ] || fail "$ABSENT" "nothing is installed in $dir of this machine yet: start a run first"
}

# `python launch/box.py ACTION ...` in the checkout, with standard output for ssh.sh
ask() {
  cd "$dir" 2>/dev/null || fail "$ABSENT" "there is no $dir on this machine: start a run first"
  interpreter
  "$python" launch/box.py "$@" </dev/null
}

# A copy arrives beside its place, is compared with its checksums, and is then renamed.

absolute() {
  case $1 in
    /*) echo "$1" ;;
    *) echo "$dir/$1" ;;
  esac
}

sums() { # DIRECTORY: a line for each file in it
  (cd "$1" && find . -type f -exec cksum {} + | LC_ALL=C sort)
}

# PATH: where the parts of what will be PATH are collected
stage() {
  local path said
  path=$(absolute "$1")
  said=$(mkdir -p "$path.arriving" 2>&1) || fail_because "$DISK" "$said" "cannot make $path.arriving"
  tell stage "$path.arriving"
}

# DIRECTORY: becomes what the archive on standard input holds
unpack() {
  local said
  rm -rf "$1"
  mkdir -p "$1"
  said=$(tar -xf - -C "$1" 2>&1) || fail_because "$DISK" "$said" "what was sent could not be written"
}

# PATH file|directory: rename what has arrived, if its checksums are those on standard input. A file
# arrives in a directory of its own.
accept() {
  local path
  path=$(absolute "$1")
  [ "$(sums "$path.arriving")" = "$(cat)" ] || fail "$DISK" "$1 did not arrive as it was sent: run the same command again"
  [ ! -e "$path" ] || mv "$path" "$path.$(date +%Y%m%d-%H%M%S)"
  if [ "$2" = file ]; then
    mv "$path.arriving/$(basename "$path")" "$path" && rmdir "$path.arriving"
  else
    mv "$path.arriving" "$path"
  fi
}

# RUN STEP: whether a run with this newest step may take the place of what is there
make_way() {
  local run newest
  run=$(absolute "$1")
  refuse_while_running
  newest=$(find "$run/checkpoints" -mindepth 1 -maxdepth 1 -name '[0-9]*' ! -name '*[!0-9]*' 2>/dev/null | sed 's:.*/::' | sort -n | tail -n 1)
  if [ -n "$newest" ] && [ "$newest" -ge "$2" ]; then
    fail "$CONFLICT" "this machine has $1 already, at step $newest, and yours is at step $2: leave out --push to go on from there, or choose another --run-dir"
  fi
}

# The run itself

# CONFIG and flags, in a session of its own: prepare the data, train, write down how it ended
train() {
  local child='' code=0 stopped=0
  exec 9>"$state/running"
  flock -w 5 9 || exit "$CONFLICT" # somebody may look whether a run is under way
  echo $$ >"$state/pid"
  cd "$dir" || exit
  interpreter
  export PYTHON=$python PYTHONUNBUFFERED=1
  # shellcheck disable=SC2329 # the trap calls it
  stop() {
    stopped=143
    [ -z "$child" ] || kill -TERM "$child" 2>/dev/null
  }
  trap stop TERM USR1
  trap '' HUP
  follow_child() { # until it has ended; a signal only interrupts the wait
    child=$!
    while :; do
      wait "$child"
      code=$?
      kill -0 "$child" 2>/dev/null || return
    done
  }
  "$python" launch/box.py prepare "$@" &
  follow_child
  if [ "$code" -eq 0 ] && [ "$stopped" -eq 0 ]; then
    bash launch/node.sh "$@" &
    follow_child
  fi
  [ "$code" -ne 0 ] || code=$stopped
  echo "$code" >"$state/code.new" && mv "$state/code.new" "$state/code"
}

# LINE CONFIG and flags: start once; LINE is the command for a person to read
start() {
  local line=$1
  shift
  cd "$dir" || exit
  exec 8>"$state/lock"
  flock 8
  if ! is_running; then
    rm -rf "$state/code" "$state/pid"
    { echo "$line" >"$state/words"; } 2>/dev/null || fail "$DISK" "cannot write to $state of this machine"
    setsid nohup bash launch/box.sh train "$dir" "$python" "$cpu" "$@" >"$state/log" 2>&1 </dev/null 8>&- &
    for _ in {1..100}; do
      [ ! -s "$state/pid" ] || break
      sleep 0.1
    done
    [ -s "$state/pid" ] || fail "$DISK" "the run did not begin: $(tail -n 1 "$state/log")"
  fi
}

# where the last lines of the log begin, in bytes
tail_of_log() {
  local size
  [ -e "$state/log" ] || fail "$ABSENT" "no run was started on this machine"
  size=$(wc -c <"$state/log")
  tell offset $((size - $(tail -n 20 "$state/log" | wc -c)))
}

# OFFSET: the log from there until the run ends; exits with the code of the run
follow() {
  local pid
  [ -e "$state/log" ] || fail "$ABSENT" "no run was started on this machine"
  pid=$(cat "$state/pid")
  if is_running; then
    tail -c "+$(($1 + 1))" -f --pid="$pid" "$state/log"
  else
    tail -c "+$(($1 + 1))" "$state/log"
  fi
  if [ ! -e "$state/code" ]; then
    fail "$UNAVAILABLE" "the run ended without a word: it was killed, or the machine was restarted; start it again with the same command"
  fi
  exit "$(cat "$state/code")"
}

# every process of the session that began with process $1
of_session() {
  local stat pid rest
  for stat in /proc/[0-9]*/stat; do
    read -r rest 2>/dev/null <"$stat" || continue
    pid=${rest%% *}
    read -r _ _ _ rest _ <<<"${rest##*) }"
    [ "$rest" != "$1" ] || echo "$pid"
  done
}

stop() {
  local pid
  if ! is_running; then
    tell stopped no
    return
  fi
  pid=$(cat "$state/pid")
  tell offset "$(wc -c <"$state/log")"
  # shellcheck disable=SC2046 # one word for each process
  kill -TERM "$pid" 2>/dev/null || kill -TERM $(of_session "$pid") 2>/dev/null
  tell stopped yes
}

# What comes back

# one --fetch at a time, as long as lines arrive: a home that is gone falls silent
hold() {
  [ -d "$state" ] || fail "$ABSENT" "there is no $dir on this machine: start a run first"
  { exec 7>"$state/fetching"; } 2>/dev/null || fail "$DISK" "cannot write to $state of this machine"
  flock -w 2 7 || fail "$BUSY" "another --fetch is under way on this machine, or has lost its connection within a minute: run the same command again when it has ended"
  tell held yes
  while read -r -t 60 _; do :; done
}

send() { # DIRECTORY: as an archive on standard output
  cd "$1" && tar -cf - .
}

copy() { # RUN and the steps that are known: see box.py
  ask copy "$@" || exit
  tell from "$(absolute "$1")/.leaving"
  is_running || tell ended "with code $(cat "$state/code" 2>/dev/null || echo unknown)"
}

trap '' XFSZ # a file that is too large is then an error with words, as a full disk is
case $action in
  needs) ask needs "$@" ;;
  forget) rm -rf "$(absolute "$1")/.leaving" ;;
  *) "$action" "$@" ;;
esac
