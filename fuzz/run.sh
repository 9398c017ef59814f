#!/usr/bin/env bash
# Fuzzes the targets, JOBS of them at a time (1 without it), for so many seconds each, and writes what libFuzzer says of
# them into record.toml.
#
#     fuzz/run.sh                      # every target, ten minutes each
#     fuzz/run.sh 60 gguf tokenizer    # two of them, a minute each; the others' records stay
#
# It needs a nightly compiler and cargo-fuzz. SANITIZER=none does without AddressSanitizer. Inputs that
# are found stay in work/, and one that breaks a target in artifacts/; neither is committed.
set -euo pipefail
cd "$(dirname "$0")"

seconds=${1:-600}
shift || true
targets=("$@")
((${#targets[@]})) || mapfile -t targets < <(cargo +nightly fuzz list --fuzz-dir .)
sanitizer=${SANITIZER:-address}

if ! git diff --quiet HEAD -- . ../Cargo.lock ../crates ../xtask/src/config.rs ':!record.toml'; then
  echo "commit first: the record names the commit that was fuzzed" >&2
  exit 2
fi
commit=$(git rev-parse --short=12 HEAD)
cargo +nightly fuzz build --fuzz-dir . --target-dir target --sanitizer "$sanitizer"
host=$(rustc -vV | sed -n 's/^host: //p')

# Puts a target's table in the place of its old one.
record() {
  local target=$1 text=$2 kept
  kept=$(awk -v name="[$target]" '/^\[/ { skip = $0 == name } !skip' record.toml 2>/dev/null || true)
  printf '%s\n\n%s\n' "${kept%%$'\n'}" "$text" | sed '/./,$!d' | cat -s >record.tmp
  mv record.tmp record.toml
}

# Fuzzes one target and leaves its exit code beside its log.
fuzz() {
  local target=$1 status=0
  mkdir -p "work/$target" "artifacts/$target"
  # A backtrace inside an error takes seconds to name its lines in a binary of this size.
  RUST_LIB_BACKTRACE=0 nice -n 19 "target/$host/release/$target" "work/$target" "corpus/$target" \
    "-artifact_prefix=artifacts/$target/" -max_total_time="$seconds" -rss_limit_mb=2048 -timeout=10 \
    -print_final_stats=1 >"work/$target.log" 2>&1 || status=$?
  echo "$status" >"work/$target.status"
}

for target in "${targets[@]}"; do
  while (($(jobs -rp | wc -l) >= ${JOBS:-1})); do wait -n; done
  fuzz "$target" &
done
wait

failed=0
for target in "${targets[@]}"; do
  log=work/$target.log
  status=$(cat "work/$target.status")
  # "Done 1234 runs in 601 second(s)"; a target that broke says its number of runs alone.
  ran=$(sed -n 's/^Done \([0-9]*\) runs in \([0-9]*\) second.*/\2/p' "$log" | tail -n 1)
  executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log" | tail -n 1)
  result=clean
  ((status == 0)) || { result="broke: $(grep -m 1 -o 'artifacts/[^ ]*' "$log" || echo "exit code $status")"; failed=1; }
  record "$target" "[$target]
commit = \"$commit\"
sanitizer = \"$sanitizer\"
seconds = ${ran:-0}
executions = ${executions:-0}
result = \"$result\""
  echo "$target: ${executions:-0} executions in ${ran:-?} s, $result"
done
exit "$failed"
