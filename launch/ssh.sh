#!/usr/bin/env bash
# Train on a machine that you reach by ssh, such as a rented one with a GPU, and bring the run home.
#
#   launch/ssh.sh USER@HOST[:PORT] CONFIG [any flag of gptjax.train]   set up, start, follow the log
#   launch/ssh.sh --fetch USER@HOST[:PORT] CONFIG [--run-dir DIR]      metrics, plots, samples, checkpoint
#   launch/ssh.sh --stop USER@HOST[:PORT]                              save and stop
#   launch/ssh.sh --push USER@HOST[:PORT] CONFIG [flags]               take a run there, and go on
#   launch/ssh.sh --cpu USER@HOST[:PORT] CONFIG [flags]                a machine without a GPU
#
# Arithmetic for gpt2_124m: 10e9 tokens take 8.0e18 FLOP, on one H100 (989 TFLOP/s in bf16) at an
# assumed 36% 6.2 hours, 16 $ at 2.50 $ an hour. A machine that is forgotten for a night costs more than
# that again. No GPU has been measured yet.
#
# The same command again follows a run that is under way, sets up only what has changed, and resumes a
# run that has stopped. Ctrl-C stops following; the run goes on. Every other word after CONFIG reaches
# `python -m gptjax.train` as it is.
#
# DIRECTORY is the place there (gptjax, in the home directory), PYTHON an interpreter there that has
# all packages, in place of an environment of our own, which the machine remembers; PROCESSES, RETRIES and PAUSE are those of
# node.sh; SSH is the command to connect with ("ssh -i KEY"). Everything else is ssh's own business
# (~/.ssh/config). Bash 3.2, of macOS, runs this; the other half is box.sh, which runs there.
#
# Exit codes: 0 done; 1 and 2 a mistake; 66 nothing there to bring; 68 no such host; 69 the machine
# lacks something; 74 a full disk; 75 the connection is lost, or another --fetch is at work; 77 ssh is refused; after following, the
# code of the run itself (launch/README.md).
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

usage() {
  echo "usage: launch/ssh.sh [--fetch | --stop | --push] [--cpu] USER@HOST[:PORT] CONFIG [flags of gptjax.train]" >&2
  exit 2
}

fail() { # CODE MESSAGE
  echo "error: $2" >&2
  exit "$1"
}

# The command line

mode=start cpu=no where='' config=''
while [ $# -gt 0 ] && [ -z "$config" ]; do
  case $1 in
    --fetch | --stop | --push)
      [ "$mode" = start ] || fail 2 "--$mode and $1 exclude each other"
      mode=${1#--}
      ;;
    --cpu) cpu=yes ;;
    -*) usage ;;
    *) if [ -z "$where" ]; then where=$1; else config=$1; fi ;;
  esac
  shift
done
[ -n "$where" ] || usage
[ -n "$config" ] || [ "$mode" = stop ] || usage
for word; do
  case $word in
    --fetch | --stop | --push | --cpu) fail 2 "$word belongs before CONFIG; the words after it are for gptjax.train" ;;
  esac
done

# HOST, HOST:PORT, [IPV6]:PORT, or an IPv6 address alone
user='' port=none
case $where in *@*) user=${where%@*}@ ;; esac
host=${where#"$user"}
case $host in
  \[*\]) host=${host#\[} host=${host%\]} ;;
  \[*\]:*) port=${host##*:} host=${host#\[} host=${host%%\]*} ;;
  *:*:*) ;;
  *:*) port=${host#*:} host=${host%%:*} ;;
esac
case $user$host in
  *@ | '' | -* | @* | *[!A-Za-z0-9@._:%-]*) fail 2 "$where is no machine: expected USER@HOST or USER@HOST:PORT" ;;
esac
host=$user$host
case $port in
  none) port='' ;;
  '' | *[!0-9]* | ??????* | 0*) fail 2 "$where has no port after its colon: expected USER@HOST:PORT, with a PORT from 1 to 65535" ;;
  *) [ "$port" -le 65535 ] || fail 2 "port $port does not exist: expected USER@HOST:PORT, with a PORT from 1 to 65535" ;;
esac

if [ "$mode" = start ] || [ "$mode" = push ]; then
  case $config in
    /* | ../*) fail 2 "$config is not in this checkout: copy it to configs/ and give its name" ;;
    */* | *.py) [ -f "$config" ] || fail 2 "there is no config file $config in $PWD" ;;
    *) [ -f "configs/$config.py" ] || fail 2 "unknown config $config: choose one of $(cd configs && echo *.py | sed 's/\.py//g'), or give the path of a .py file in this checkout" ;;
  esac
fi

# the run's directory, as gptjax.train finds it
run=runs/$(basename "${config:-none}" .py)
previous=''
for word; do
  case $word in --run-dir=* | --run_dir=*) run=${word#*=} ;; esac
  case $previous in --run-dir | --run_dir) run=$word ;; esac
  previous=$word
done
while [ "$run" != "${run%/}" ]; do run=${run%/}; done
case $run in
  '' | .. | ../* | */.. | */../*) fail 2 "--run-dir '$run' cannot be brought home: give a directory under the checkout" ;;
  /*) home_run=runs/$(basename "$run") ;;
  *) home_run=$run ;;
esac

directory=${DIRECTORY:-gptjax}
newline='
'

# The connection

tmp=$(mktemp -d /tmp/gptjax.XXXXXX) || exit 1
# shellcheck disable=SC2206 # SSH is a command with its options
reach=(${SSH:-ssh} -o ControlMaster=auto -o "ControlPath=$tmp/c" -o ControlPersist=60
  -o ServerAliveInterval=15 -o ServerAliveCountMax=4 -o ConnectTimeout=20)
[ -t 0 ] || reach+=(-o BatchMode=yes) # without a terminal a question would wait for ever
[ -z "$port" ] || reach+=(-p "$port")
command -v "${reach[0]}" >/dev/null || fail 2 "there is no ${reach[0]} here: install OpenSSH's client"
# shellcheck disable=SC2329 # the trap calls it
leave() {
  [ -z "$holder" ] || kill "$holder" 2>/dev/null
  "${reach[@]}" -O exit "$host" 2>/dev/null
  rm -rf "$tmp"
  [ -z "$home_lock" ] || { rm -f "$home_lock" && rmdir "$(dirname "$home_lock")" 2>/dev/null; }
}
holder='' home_lock='' # what `fetch` holds
trap leave EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# one word of a POSIX shell, whatever is in $1
quoted() {
  local quote="'" escaped="'\\''"
  printf "'%s'" "${1//$quote/$escaped}"
}

quoted_all() {
  local word line=''
  for word; do line="$line $(quoted "$word")"; done
  printf %s "${line# }"
}

# ACTION [words]: an action of box.sh there; its lines for us end up in $tmp/told
far() {
  local settings=''
  [ -z "${PROCESSES:-}" ] || settings="PROCESSES=$(quoted "$PROCESSES") "
  [ -z "${RETRIES:-}" ] || settings="${settings}RETRIES=$(quoted "$RETRIES") "
  [ -z "${PAUSE:-}" ] || settings="${settings}PAUSE=$(quoted "$PAUSE") "
  local action=$1
  shift
  "${reach[@]}" "$host" "${settings}bash -c $(quoted "$(cat launch/box.sh)") box.sh $(quoted_all "$action" "$directory" "${PYTHON:-}" "$cpu" "$@")"
}

# the same, without input; ends this script if it fails
must() {
  far "$@" </dev/null >"$tmp/told" || lost_or $? "$1"
}

# a failure of the action ends with its code; what it said has been printed
lost_or() { # CODE WHAT
  [ "$1" -eq 255 ] || exit "$1"
  fail 75 "the connection to $host was lost ($2): run the same command again"
}

# the values of KEY in what was told, one a line
told() {
  sed -n "s/^gptjax:$1	//p" "$tmp/told"
}

connect() {
  local code said
  "${reach[@]}" "$host" true </dev/null >/dev/null 2>"$tmp/said"
  code=$?
  [ "$code" -eq 0 ] && return
  said=$(tr -d '\r' <"$tmp/said" | grep -v '^ *$' | tail -n 1)
  [ "$code" -eq 255 ] || fail 77 "$host does not run commands by ssh: $said"
  if grep -q 'IDENTIFICATION HAS CHANGED' "$tmp/said"; then
    fail 77 "the key of $host has changed: if it is a newly rented machine at an old address, run ssh-keygen -R with that address, and connect again"
  fi
  case $(cat "$tmp/said") in
    *"Host key verification failed"*) fail 77 "$host is not known yet: connect once by hand (ssh ${port:+-p $port }$host) and compare its key" ;;
    *"Permission denied"* | *"Too many authentication failures"*) fail 77 "$host refuses your key: give its public half to the provider, and check USER and ~/.ssh/config ($said)" ;;
    *"Could not resolve"* | *"not known"*) fail 68 "there is no host $host: $said" ;;
    *refused* | *"timed out"* | *"No route"* | *unreachable*) fail 68 "$where does not answer: is the machine up, and is the port right? ($said)" ;;
  esac
  fail 68 "cannot connect to $where: $said"
}

# Copies. rsync continues a transfer that was cut; without it on either side, tar begins again.

both_have_rsync() {
  [ -z "${has_rsync:-}" ] || return "$has_rsync"
  has_rsync=1
  command -v rsync >/dev/null && "${reach[@]}" "$host" 'command -v rsync' </dev/null >/dev/null 2>&1 && has_rsync=0
  return "$has_rsync"
}

# a remote shell for rsync that begins in directory $1, so that no path has to survive two shells
remote_shell() {
  {
    # shellcheck disable=SC2016 # rsync runs this with words of its own
    echo 'while [ "$1" != rsync ]; do shift; done'
    printf 'exec %s %s %s"$*"\n' "$(quoted_all "${reach[@]}")" "$(quoted "$host")" "$(quoted "cd $(quoted "$1") && ")"
  } >"$tmp/shell"
}

STAYS="./damaged ./.lock ./.leaving ./.fetched"

sums() { # DIRECTORY: a line for each file that travels
  local leave=() name
  for name in $STAYS; do leave+=(! -path "$name" ! -path "$name/*"); done
  (cd "$1" && find -L . -type f "${leave[@]}" -exec cksum {} + | LC_ALL=C sort)
}

# PATH [THERE]: a file or directory of ours to the same path there; whole and verified, or not at all
put() {
  local path=$1 there=${2:-$1} from=$1 kind=directory stage leave=() name
  if [ ! -d "$path" ]; then
    kind=file from=$tmp/one
    rm -rf "$from"
    mkdir "$from"
    ln -s "$PWD/$path" "$from/$(basename "$there")"
  fi
  echo "copy     $path ($(du -shL "$from" 2>/dev/null | cut -f 1)) to $host"
  must stage "$there"
  stage=$(told stage)
  if both_have_rsync; then
    for name in $STAYS; do leave+=("--exclude=${name#.}"); done
    remote_shell "$stage"
    rsync -rtL --partial --delete "${leave[@]}" -e "bash $tmp/shell" "$from/" box:./ 2>"$tmp/said" ||
      copy_failed "$path could not be copied to $host"
  else
    for name in $STAYS; do leave+=("--exclude=$name"); done
    (cd "$from" && COPYFILE_DISABLE=1 tar -chf - "${leave[@]}" .) 2>"$tmp/said" | far unpack "$stage"
    set -- "${PIPESTATUS[@]}"
    [ "$2" -eq 0 ] || lost_or "$2" "copying $path"
    [ "$1" -eq 0 ] || copy_failed "$path could not be read"
  fi
  sums "$from" >"$tmp/sums"
  far accept "$there" "$kind" <"$tmp/sums" || lost_or $? "copying $path"
}

copy_failed() { # MESSAGE
  local reason
  if reason=$(grep -m 1 -E 'No space left|File too large|Wrote only|quota exceeded|Read-only file system' "$tmp/said"); then
    fail 74 "$1: a disk is full or cannot be written ($reason): make room, and run the same command again"
  fi
  fail 75 "$1, and nothing was replaced: run the same command again ($(grep -v '^ *$' "$tmp/said" | tail -n 1))"
}

# What the checkout is: all that git tracks, and new files where code and configs live

checkout_files() {
  local above file
  {
    if above=$(git rev-parse --show-cdup 2>/dev/null) && [ -z "$above" ]; then
      git ls-files -z
      git ls-files -z --others --exclude-standard -- gptjax configs launch bench
    else
      find gptjax configs launch bench docs tests ./*.toml ./*.txt ./*.md ./LICENSE ./Makefile \
        -type f ! -name '*.pyc' -print0 2>/dev/null
    fi
    case $config in */* | *.py) printf '%s\0' "$config" ;; esac
  } | while IFS= read -r -d '' file; do
    case $file in runs/* | data/* | .venv/*) continue ;; esac
    [ ! -e "$file" ] || printf '%s\0' "$file"
  done
}

copy_checkout() {
  echo "copy     the checkout to $host:$directory"
  checkout_files >"$tmp/files"
  COPYFILE_DISABLE=1 tar --null -T "$tmp/files" -czf - | far tree
  set -- "${PIPESTATUS[@]}"
  [ "$2" -eq 0 ] || lost_or "$2" "copying the checkout"
  [ "$1" -eq 0 ] || fail 75 "the checkout could not be read: run the same command again"
}

# what the run reads and does not find there
bring_needs() {
  local what path made='' asked sent=''
  while :; do # a model that was missing hides what else is
    must needs "$config" "$@"
    asked=$(sed -n 's/^gptjax:\(need\|either\|or\)	/\1	/p' "$tmp/told")
    [ "$asked" != "$sent" ] || [ -z "$sent" ] || fail 1 "what was sent to $host is not what the run needs there: ${asked//	/ }"
    sent=''
    while IFS='	' read -r what path; do
      case $what in
        either) # and nothing of what it can be made from
          made=$path
          [ -e "$path" ] || continue
          made=''
          ;;
        or)
          [ -n "$made" ] || continue
          [ "$path" != "$made" ] || made=''
          ;;
        need) made='' ;;
        *) continue ;;
      esac
      [ -e "$path" ] || fail 1 "the run needs $path, which is neither here nor on $host${made:+, to make $made from it}"
      put "$path"
      sent=$asked
    done <<<"$asked"
    [ -n "$sent" ] || return 0
  done
}

# Following

goes_on() {
  echo
  echo "The run goes on. Follow it with the same command; stop it with launch/ssh.sh --stop $where"
  exit 130
}

# OFFSET: print the log from there until the run has ended, through lost connections; sets `code`
follow() {
  local offset=$1 tries=0 before
  : >"$tmp/log"
  trap goes_on INT
  while :; do
    before=$(wc -c <"$tmp/log")
    far follow $((offset + before)) </dev/null 2>"$tmp/said" | tee -a "$tmp/log"
    code=${PIPESTATUS[0]}
    if [ "$code" -ne 255 ]; then
      cat "$tmp/said" >&2
      break
    fi
    [ "$(wc -c <"$tmp/log")" -eq "$before" ] || tries=0
    tries=$((tries + 1))
    [ "$tries" -le 10 ] || fail 75 "$host does not answer any more: if the machine is there, so is the run; follow it with the same command"
    [ "$tries" -gt 1 ] || echo "the connection to $host is lost; trying again" >&2
    sleep $((tries * 3))
  done
  trap 'exit 130' INT
}

# Coming home

newest_step() { # RUN
  find "$1/checkpoints" -mindepth 1 -maxdepth 1 -name '[0-9]*' ! -name '*[!0-9]*' 2>/dev/null | sed 's:.*/::' | sort -n | tail -n 1
}

# one --fetch at a time into a directory. The lock is a link to nothing, named after its process: it is
# made in one step, and without flock, which macOS lacks.
lock_home() {
  local lock=$home_run.fetching.lock owner
  mkdir -p "$(dirname "$home_run")" || fail 74 "cannot make $(dirname "$home_run")"
  for _ in 1 2 3; do
    if ln -s "process-$$" "$lock" 2>"$tmp/said"; then
      home_lock=$lock
      return
    fi
    owner=$(readlink "$lock") || continue # it was released in between, or cannot be made
    ! kill -0 "${owner#process-}" 2>/dev/null ||
      fail 75 "another --fetch brings $home_run home (process ${owner#process-}): wait until it has ended, or, if that process is something else, remove $lock"
    [ "$(readlink "$lock")" != "$owner" ] || rm -f "$lock" # its process has died
  done
  fail 74 "cannot make $lock: $(cat "$tmp/said")"
}

# one --fetch at a time from a machine: a connection of its own holds the lock there, as long as this
# script lives and its lines arrive
lock_there() {
  : >"$tmp/held"
  {
    while kill -0 $$ && echo; do sleep 2; done | far hold >"$tmp/held" 2>"$tmp/refused"
    echo "ended ${PIPESTATUS[1]}" >>"$tmp/held"
  } >/dev/null 2>&1 </dev/null &
  holder=$!
  disown "$holder"
  until [ -s "$tmp/held" ]; do sleep 0.1; done
  case $(cat "$tmp/held") in
    ended*)
      cat "$tmp/refused" >&2
      lost_or "$(sed 's/.* //' "$tmp/held")" "waiting for the lock"
      ;;
  esac
}

fetch() {
  local into=$home_run.fetching from steps step name known mine newest ended
  lock_home
  lock_there
  if [ -e "$home_run" ] && [ ! -e "$home_run/.fetched" ]; then
    fail 1 "$home_run is a run of this machine, which --fetch would replace: move it away, or choose another --run-dir"
  fi
  known=$(find "$home_run/checkpoints" -mindepth 2 -maxdepth 2 -name INTEGRITY.json 2>/dev/null | sed 's:/INTEGRITY.json$::; s:.*/::')
  # shellcheck disable=SC2086 # one word for each step
  must copy "$run" $known
  steps=$(told step)
  mine=$(newest_step "$home_run")
  newest=$(echo "$steps" | sort -n | tail -n 1)
  ended=$(told ended)
  if [ -n "$mine" ] && [ "${newest:-0}" -lt "$mine" ]; then
    fail 1 "$home_run is at step $mine, and the run on $host at step ${newest:-0}: to go on from yours, use --push; to have theirs, move $home_run away"
  fi
  from=$(told from)
  mkdir -p "$into" || fail 74 "cannot make $into"
  if both_have_rsync; then
    remote_shell "$from"
    rsync -rt --partial --delete -e "bash $tmp/shell" box:./ "$into/" 2>"$tmp/said" ||
      copy_failed "$run could not be brought from $host"
  else
    rm -rf "$into"
    mkdir -p "$into" || fail 74 "cannot make $into"
    far send "$from" </dev/null 2>"$tmp/gone" | tar -xf - -C "$into" 2>"$tmp/said"
    set -- "${PIPESTATUS[@]}"
    [ "$2" -eq 0 ] || copy_failed "$run could not be brought from $host"
    [ "$1" -eq 0 ] || { cat "$tmp/gone" >>"$tmp/said" && copy_failed "$run could not be brought from $host"; }
  fi
  far sums "$from" </dev/null >"$tmp/theirs" || lost_or $? "comparing checksums"
  sums "$into" >"$tmp/mine"
  cmp -s "$tmp/mine" "$tmp/theirs" || fail 75 "$run changed on its way home, and nothing was replaced: run the same command again"
  # from here on only renames: files before checkpoints, old checkpoints last
  mkdir -p "$home_run/checkpoints" || fail 74 "cannot make $home_run"
  [ -e "$home_run/.fetched" ] || : >"$home_run/.fetched"
  for name in "$into"/* "$into"/.[!.]*; do
    [ -e "$name" ] && [ "$name" != "$into/checkpoints" ] || continue
    [ ! -d "$name" ] || rm -rf "${home_run:?}/$(basename "$name")"
    mv -f "$name" "$home_run/"
  done
  for name in "$into"/checkpoints/*; do
    [ ! -e "$name" ] || mv "$name" "$home_run/checkpoints/"
  done
  while read -r step; do
    echo "$steps" | grep -qx "$step" || rm -rf "$home_run/checkpoints/${step:?}"
  done <"$home_run/.fetched"
  printf '%s' "${steps:+$steps$newline}" >"$home_run/.fetched.new" && mv "$home_run/.fetched.new" "$home_run/.fetched"
  rm -rf "$into"
  far forget "$run" </dev/null
  [ -n "$newest" ] && newest="with the checkpoint of step $newest" || newest="without a checkpoint yet"
  [ -n "$ended" ] && ended="has ended $ended" || ended="goes on"
  echo "home     $home_run, $newest; the run on $host $ended"
}

# Going there

# the extras that these flags need, each after a comma, in one order: others would be installed anew
extras_of() {
  local word name flag='' needed=' ' found=''
  for word; do
    case $word in
      --*=*) flag=${word%%=*} word=${word#*=} ;;
      --*) flag=$word ;;
    esac
    case ${flag//_/-} in
      --train.checkpoint-dir) case $word in s3://* | gs://*) needed="${needed}cloud " ;; esac ;;
      --train.track) needed="$needed$word " ;;
    esac
  done
  for name in cloud tensorboard trackio wandb; do
    case $needed in *" $name "*) found=$found,$name ;; esac
  done
  printf %s "$found"
}

start() {
  local words extras pinned python step
  must check
  words=$(told running) extras=$(told extras) pinned=$(told pinned) python=$(told python)
  if [ -n "$words" ]; then
    [ "$mode" = start ] || fail 1 "a run is under way on $host: $words; stop it first with --stop"
    case $words in
      "$line") ;;
      "$config" | "$config "*) [ $# -eq 0 ] || other_run "$words" ;;
      *) other_run "$words" ;;
    esac
    echo "follow   $words"
    must tail_of_log
    follow "$(told offset)"
    return
  fi
  if [ "$mode" = push ]; then
    step=$(newest_step "$home_run")
    [ -e "$home_run/config.json" ] && [ -n "$step" ] || fail 66 "there is no run with a checkpoint in $home_run to push"
    must make_way "$run" "$step"
  fi
  copy_checkout
  must install "$extras$(extras_of "$@")" "$pinned" "$python"
  if [ "$mode" = push ]; then
    [ -e "$home_run/.fetched" ] || : >"$home_run/.fetched" # it lives there now, and may be fetched
    put "$home_run" "$run"
  fi
  bring_needs "$@"
  must start "$line" "$config" "$@"
  echo "start    $line; Ctrl-C only stops following"
  follow 0
}

other_run() { # WORDS
  fail 1 "another run is under way on $host: $1; stop it first with --stop, or follow it with launch/ssh.sh $where ${1%% *}"
}

# words for a person, with quotes where they are needed
readable() {
  local word line=''
  for word; do
    case $word in
      '' | *[!A-Za-z0-9_./:=,@%+-]*) line="$line $(quoted "$word")" ;;
      *) line="$line $word" ;;
    esac
  done
  echo "${line# }"
}

line=$(readable "$config" "$@")
connect
case $mode in
  fetch) fetch ;;
  stop)
    must stop
    if [ "$(told stopped)" = no ]; then
      echo "no run is under way on $host"
      exit 0
    fi
    follow "$(told offset)"
    case $code in 0 | 130 | 143) ;; *) exit "$code" ;; esac
    echo "stopped  bring the run home with --fetch, then end the rent: a machine that does nothing costs the same"
    ;;
  *)
    start "$@"
    [ "$code" -ne 0 ] || echo "complete bring the run home with launch/ssh.sh --fetch $where $line; then end the rent"
    exit "$code"
    ;;
esac
