# What the profiling scripts of this directory share. They source it; it is no command.
#
# Each takes a process to look at (--pid), or a command to run and look at, and prints its result on stdout; the
# command's own output goes to stderr. What a machine cannot do is said in one line that begins with "skipped:",
# and that is exit code 0: nothing failed.

# The options that every script takes. A script adds its own before it calls `parse`.
declare -A option=([pid]='' [seconds]='' [out]='')
command=()

usage() { sed -n '2,/^set -/p' "$0" | sed '$d; s/^# \{0,1\}//'; }

# Said on the script's own output, wherever that of the function goes.
exec 3>&1
skip() {
  echo "skipped: $*" >&3
  exit 0
}

# The process has ended before anything could look at it.
gone() {
  echo "the process ended before this could look at it" >&3
  exit 1
}

# Reads "--NAME VALUE" for every name in `option`, then a command behind "--".
parse() {
  local name
  while [ $# -gt 0 ]; do
    name="${1#--}"
    case "$1" in
      -h | --help) usage; exit 0 ;;
      --) shift; command=("$@"); break ;;
      --?*)
        [ -n "${option[$name]+known}" ] && [ $# -ge 2 ] || { usage >&2; exit 2; }
        option[$name]="$2"
        shift 2
        ;;
      *) usage >&2; exit 2 ;;
    esac
  done
  for name in pid seconds every; do
    [[ "${option[$name]:-0}" =~ ^[0-9]+$ ]] || { echo "not a number: --$name ${option[$name]}" >&2; exit 2; }
  done
  if [ -n "${option[pid]}" ]; then
    [ ${#command[@]} -eq 0 ] || { echo "either --pid or a command, not both" >&2; exit 2; }
    [ -d "/proc/${option[pid]}" ] || { echo "there is no process ${option[pid]}" >&2; exit 2; }
    option[seconds]="${option[seconds]:-5}"
  elif [ ${#command[@]} -eq 0 ]; then
    usage >&2
    exit 2
  fi
}

# ---- what this machine can do ----

need_root() {
  [ "$(id -u)" = 0 ] || skip "kernel tracing needs root, and this is $(id -un)"
}

need_perf() {
  command -v perf >/dev/null || skip "there is no perf (Debian: apt-get install linux-perf)"
  local said
  said="$(perf record -q -o /dev/null "$@" -- true 2>&1)" ||
    skip "perf cannot record here ($*): $(grep -v '^$' <<<"$said" | head -n 1)"
}

need_bpftrace() {
  command -v bpftrace >/dev/null || skip "there is no bpftrace (Debian: apt-get install bpftrace)"
  need_root
  local said
  said="$(timeout 20 bpftrace -e 'BEGIN { printf("it runs\n"); exit(); }' 2>&1)" || true
  grep -q "it runs" <<<"$said" || skip "bpftrace does not run here: $(tail -n 1 <<<"$said")"
}

# Tracepoints "group:name ...", each of which has to be there. Where tracefs is not mounted, the script starts again
# in a mount namespace of its own that has it: nobody else sees that mount.
need_tracepoints() {
  local events=/sys/kernel/tracing/events at
  if [ ! -d "$events" ] && [ -z "${TRACEFS_TRIED:-}" ] && command -v unshare >/dev/null; then
    if unshare --mount mount -t tracefs nodev /sys/kernel/tracing 2>/dev/null; then
      export TRACEFS_TRIED=1
      rm -rf "$scratch"
      exec unshare --mount sh -c 'mount -t tracefs nodev /sys/kernel/tracing && exec "$0" "$@"' "$0" "${arguments[@]}"
    fi
  fi
  [ -d "$events" ] ||
    skip "tracefs is not there, and cannot be mounted (mount -t tracefs nodev /sys/kernel/tracing)"
  for at in "$@"; do
    [ -d "$events/${at/://}" ] || skip "this kernel has no tracepoint $at"
  done
}

# ---- running ----

scratch="$(mktemp -d)"
started='' tracer=''
clean_up() {
  local pid
  for pid in $tracer $started; do kill -INT "$pid" 2>/dev/null || true; done
  for pid in $tracer $started; do wait "$pid" 2>/dev/null || true; done
  rm -rf "$scratch"
}
trap clean_up EXIT
trap 'exit 130' INT TERM
arguments=("$@")

# Starts the command, where one was given; `target` is the process to look at.
start_target() {
  if [ -n "${option[pid]}" ]; then
    target="${option[pid]}"
    return
  fi
  # Signals are as they were: a shell's background job would ignore SIGINT.
  env --default-signal=INT,QUIT "${command[@]}" >&2 &
  started=$!
  target=$started
  # The tracers look at the file and the threads that the process has after its exec.
  local tries
  for tries in $(seq 100); do
    [ "$(readlink "/proc/$target/exe" 2>/dev/null)" != "$(readlink -f "$BASH")" ] || { sleep 0.01; continue; }
    [ "$(readlink "/proc/$target/exe" 2>/dev/null)" != "$(readlink -f "$(command -v env)")" ] || { sleep 0.01; continue; }
    break
  done
}

# Waits until the target ends, the tracer ends, or the time is over.
wait_for_target() {
  local tenths=$((${option[seconds]:-1000000} * 10))
  while [ "$tenths" -gt 0 ] && is_alive; do
    if [ -n "$tracer" ] && ! kill -0 "$tracer" 2>/dev/null; then return; fi
    sleep 0.1
    tenths=$((tenths - 1))
  done
}

is_alive() { kill -0 "$target" 2>/dev/null && [ "$(state_of "$target")" != Z ]; }

exe_of_target() { readlink "/proc/$target/exe" || gone; }

state_of() { sed -n 's/^State:\s*\(.\).*/\1/p' "/proc/$1/status" 2>/dev/null || true; }

# Stops the tracer and waits until it has written what it knows.
stop_tracer() {
  kill -INT "$tracer" 2>/dev/null || true
  wait "$tracer" 2>/dev/null || true
  tracer=''
}

# Runs a bpftrace program over the target until it is over, and prints the maps of `shown`; more arguments are
# bpftrace's. TARGET in the program stands for the process, EXE for its file. Probes are attached one after the other, and
# go the same way, which takes seconds where there are many: the look begins and ends with a timer behind them all.
shown=()
trace_with() {
  local program="$1" ready seconds="${option[seconds]:-1000000}"
  shift
  program="$program
interval:ms:50 {
  if (@ready == 0) {
    $(printf 'clear(@%s); ' "${shown[@]}")
    @ready = nsecs;
    printf(\"ready\\n\");
  } else if (nsecs - @ready > (uint64)$seconds * 1000000000) {
    $(printf 'print(@%s); ' "${shown[@]}")
    printf(\"over\\n\");
    exit();
  }
}"
  program="${program//TARGET/$target}"
  program="${program//EXE/$(exe_of_target)}"
  env --default-signal=INT bpftrace -B line "$@" -e "$program" >"$scratch/said" 2>"$scratch/err" &
  tracer=$!
  for ready in $(seq 600); do
    grep -q '^ready' "$scratch/said" && break
    kill -0 "$tracer" 2>/dev/null || break
    sleep 0.05
  done
  if ! grep -q '^ready' "$scratch/said"; then
    stop_tracer
    is_alive || gone
    skip "bpftrace does not attach: $(noise "$scratch/err" | head -n 1)"
  fi
  while is_alive && kill -0 "$tracer" 2>/dev/null; do
    ! grep -q '^over' "$scratch/said" || break
    sleep 0.1
  done
  stop_tracer
  noise "$scratch/err" >&2
  sed -n '/^ready/,/^over/p' "$scratch/said" | grep -v -e '^ready' -e '^over' || true
}

# Records the target (with --all-cpus: the machine) with perf into $scratch/data, until the target is over.
record_with() {
  local whom=(--pid "$target")
  case " $* " in *" --all-cpus "*) whom=() ;; esac
  env --default-signal=INT perf record -q --no-buildid --no-buildid-cache -o "$scratch/data" "$@" "${whom[@]}" >"$scratch/said" 2>&1 &
  tracer=$!
  wait_for_target
  stop_tracer
  [ -s "$scratch/data" ] || is_alive || gone
  [ -s "$scratch/data" ] || skip "perf recorded nothing: $(head -n 1 "$scratch/said")"
}

# What perf recorded, as text, with the fields that are named.
recorded() { perf script -i "$scratch/data" --no-inline "$@" 2>/dev/null; }

# Draws folded stacks ("a;b;c N" a line, in UNIT) into FILE.svg, or says why not; the stacks stand in FILE.folded.
draw() {
  local file="$1" title="$2" unit="$3" inferno
  if [ ! -s "$file.folded" ]; then
    echo "no stack was seen"
    return
  fi
  inferno="$(command -v inferno-flamegraph || true)"
  if [ -n "$inferno" ]; then
    "$inferno" --title "$title" --countname "$unit" "$file.folded" >"$file.svg" 2>/dev/null
    echo "flame graph: $file.svg (stacks: $file.folded)"
  else
    echo "no flame graph: there is no inferno-flamegraph (cargo install inferno); folded stacks: $file.folded"
  fi
}

# bpftrace warns of probes in functions that the linker threw away, and of a limit that newer kernels do not have.
noise() { grep -v -e 'invalid address' -e 'RLIMIT_MEMLOCK' -e '^$' "$1" || true; }
