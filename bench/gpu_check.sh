#!/bin/bash
# Everything that a GPU should show, in about eight minutes: what must hold, what it makes of the goals, and one real run.
# bench/gpu_check.sh [MODEL FORGET RETAIN HOLDOUT] - without them the last part trains the demo's model.
cd "$(dirname "$0")/.." || exit 1
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
export PYTHONPATH="src:$PYTHONPATH"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
$PYTHON -c 'import torch, transformers, peft; print("torch", torch.__version__, "transformers", transformers.__version__, "peft", peft.__version__)'
timeout 90 "$PYTHON" -m pytest -o addopts= tests/invariants/test_cuda.py -m cuda -x --durations=5
timeout 330 "$PYTHON" -m bench.gpu
output=$(mktemp -d)
if [ $# -eq 4 ]; then
    time timeout 150 "$PYTHON" -m expunge unlearn --model "$1" --forget "$2" --retain "$3" --holdout "$4" \
        --device cuda --output "$output/run"
else
    time timeout 150 "$PYTHON" -m expunge demo --output "$output/demo"
fi
rm -rf "$output"
