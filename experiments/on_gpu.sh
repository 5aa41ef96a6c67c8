#!/bin/bash
# SmolLM2 on one GPU, in about eight minutes: subjects and retrained models, one timed run by the command line, then side
# by side three seeds of `default` and `paper`, then what there is time for: TOFU, another rate of `paper`, `npo`.
# experiments/on_gpu.sh GGUF OUTPUT [SECONDS]; OUTPUT/arms/*/runs.jsonl are the rows of experiments.arms. To try it without
# a GPU: PASSES=1 STEPS=8. AT_ONCE runs go on side by side (3), in the order of their worth. GEMMA names the GGUF file of
# Gemma-3-270M, which then comes last. The data are read from `shared` beside the checkout; PYTHON names another interpreter.
GGUF=$(realpath "$1") OUTPUT=$(realpath -m "$2") GEMMA=${GEMMA:+$(realpath "$GEMMA")} END=$((SECONDS + ${3:-480}))
cd "$(dirname "$0")/.." || exit 1
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
AT_ONCE=${AT_ONCE:-3}
RUN=${STEPS:+--max-steps $STEPS} ARM=${STEPS:+max_steps=$STEPS}
export PYTHONPATH="src:$PYTHONPATH" PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
export EXPUNGE_SUBJECTS=${EXPUNGE_SUBJECTS:-$OUTPUT/subjects}
mkdir -p "$OUTPUT/logs" "$OUTPUT/arms"
say() { echo "== ${SECONDS} s: $*"; }
left() { echo $((END - SECONDS > 1 ? END - SECONDS : 1)); }
beside() { # NAME COMMAND...: in the background, its output in a file
    local name=$1
    shift
    while [ "$(jobs -rp | wc -l)" -ge "$AT_ONCE" ]; do wait -n; done # they share the GPU by slices of time
    timeout "$(left)" "$@" >"$OUTPUT/logs/$name" 2>&1 || say "$name: exit $?; $(tail -n 2 "$OUTPUT/logs/$name" | tr '\n' ' ' | cut -c 1-300)" &
}

say origin
$PYTHON -m experiments.real --subject smollm2-tofu --models &
$PYTHON -m experiments.real --gguf "$GGUF" --subject smollm2-full --models origin || exit 1
wait
say subjects
make="$PYTHON -m experiments.real --rate 3e-4 --tokens 2048 --passes ${PASSES:-12}"
for name in subject retrained retrained-1 retrained-2; do
    beside "make-$name" $make --subject smollm2-full --models $name
done
wait
tail -qn 1 "$OUTPUT"/logs/make-*

full=$EXPUNGE_SUBJECTS/smollm2-full
if [ ! -d "$full/subject" ]; then say "no subject"; exit 1; fi
say "a run of the default recipe, alone"
arms=$OUTPUT/arms/default-0/smollm2-full
mkdir -p "$arms"
(time timeout 200 $PYTHON -m expunge unlearn --model "$full/subject" --forget "$full/data/forget.jsonl" \
    --retain "$full/data/retain.jsonl" --holdout "$full/data/holdout.jsonl" --output "$arms/default-0" --seed 0 $RUN) 2>&1
run() { # SUBJECT NAME ARGUMENTS...
    local subject=$1 name=$2
    shift 2
    beside "$subject-$name" $PYTHON -m experiments.arms --output "$OUTPUT/arms/$name" run --subjects "$subject" "$@"
}
bf16='dtype="bfloat16"' # the recipe's fp32 takes no graphs
say "side by side"
run smollm2-full default-0 --arms default --seeds 0
run smollm2-full fixed --arms before retrained --seeds 0 1 2
for seed in 1 2; do run smollm2-full default-$seed --arms default --seeds $seed ${ARM:+--set $ARM}; done
for seed in 0 1 2; do run smollm2-full paper-$seed --arms paper --seeds $seed --set "$bf16" $ARM; done
beside evaluate-run $PYTHON -m expunge evaluate --run "$arms/default-0" --output "$OUTPUT/evaluated.json"
beside contexts $PYTHON -m experiments.contexts --data "$full/data" --model "$full"/{subject,retrained} --adapter "$arms/default-0/adapter"
beside demo-real $PYTHON -m expunge demo --model "$GGUF" --output "$OUTPUT/demo-real"
for name in subject retrained; do beside "make-tofu-$name" $make --subject smollm2-tofu --models $name; done
if [ -n "$GEMMA" ]; then
    beside make-gemma-origin $PYTHON -m experiments.real --gguf "$GEMMA" --subject gemma --every 4 --models origin
fi
wait
if [ -n "$GEMMA" ]; then
    for name in subject retrained; do beside "make-gemma-$name" $make --subject gemma --every 4 --models $name; done
    wait
fi
say "what there is time for"
run smollm2-tofu tofu-fixed --arms before retrained --seeds 0
run smollm2-tofu tofu-default --arms default --seeds 0 ${ARM:+--set $ARM}
run smollm2-tofu tofu-paper --arms paper --seeds 0 --set "$bf16" $ARM
if [ -n "$GEMMA" ]; then
    run gemma gemma-fixed --arms before retrained --seeds 0
    run gemma gemma-default --arms default --seeds 0 ${ARM:+--set $ARM}
fi
run smollm2-full paper-1e-3 --arms paper --seeds 0 --set "$bf16" learning_rate=1e-3 $ARM
run smollm2-full npo-0 --arms npo --seeds 0 ${ARM:+--set $ARM}
wait
say "all rows"
cat "$OUTPUT"/arms/*/runs.jsonl
