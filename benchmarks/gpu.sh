#!/usr/bin/env bash
# Everything to run where a GPU is at hand, in three parts of at most ten minutes each:
#   bash benchmarks/gpu.sh 1    # tests: captured steps and engines, then all on all cores
#   bash benchmarks/gpu.sh 2    # speed against the plain reference on the same card, and profiles of the stages
#   bash benchmarks/gpu.sh 3    # the quickstart and the recipe of one hour, end to end
# Output goes to OUT (default: report/gpu). Part 3 needs the file of DATASET (default: hopper-medium-replay-v2), which is
# downloaded unless D4RL_DATASET_DIR has it.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
OUT=${OUT:-report/gpu}
DATASET=${DATASET:-hopper-medium-replay-v2}
UNTIL=$((SECONDS + 590))
FAILED=0
mkdir -p "$OUT"

step() { # NAME COMMAND...: run it in the time that is left, keep its output, report its end
  local name=$1 started=$SECONDS code
  shift
  echo "== $name: $*"
  timeout --kill-after=10 $((UNTIL > SECONDS ? UNTIL - SECONDS : 1)) "$@" 2>&1 | tee "$OUT/$name.txt"
  code=${PIPESTATUS[0]}
  echo "== $name: exit code $code after $((SECONDS - started)) s"
  [ "$code" -eq 0 ] || FAILED=1
}

case "${1:-}" in
1)
  step captured pytest tests/modules/test_captured_steps.py tests/policy/test_engines.py -q
  step tests pytest -q -n auto
  ;;
2)
  step speed python benchmarks/speed.py --device cuda --precision bf16-mixed --output "$OUT/speed"
  for stage in behavior support critic guidance; do # support has no Trainer to profile; the critic needs it
    step "profile_$stage" cepdiff fit --config configs/quickstart.yaml --run_dir "$OUT/profile" --stage "$stage" --trainer.accelerator gpu --trainer.profiler pytorch --stages.behavior.max_steps 500 --stages.critic.max_steps 500 --stages.guidance.max_steps 500
  done
  ;;
3)
  step quickstart cepdiff fit --config configs/quickstart.yaml --run_dir "$OUT/quickstart" --trainer.accelerator gpu
  step hour cepdiff fit --config configs/hopper.yaml --config configs/cpu_hour.yaml --run_dir "$OUT/hour" --data.dataset "$DATASET" --trainer.accelerator gpu --trainer.precision bf16-mixed
  ;;
*)
  echo "usage: bash benchmarks/gpu.sh 1|2|3" >&2
  exit 2
  ;;
esac
exit $FAILED
