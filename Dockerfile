#   docker build --tag expunge .
#   docker run --rm --volume "$PWD:/runs" --user "$(id -u):$(id -g)" expunge unlearn --model MODEL ...
#   docker run --rm --gpus all --volume "$PWD:/runs" --user "$(id -u):$(id -g)" expunge unlearn --model MODEL ...
#
# What outlives the container lies in the folder at /runs: runs, models from the Hub, and the key of hashes of data.
FROM python:3.11.14-slim-bookworm

# Address of an index with wheels of torch for the CPU alone, which are smaller; those of the default index run on both.
ARG TORCH_INDEX=""

WORKDIR /source
COPY constraints.txt ./
RUN pip install --no-cache-dir --constraint constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN pip install --no-cache-dir --constraint constraints.txt ".[gguf,sentencepiece]"

ENV HOME=/runs HF_HOME=/runs/.cache/huggingface XDG_STATE_HOME=/runs/.local/state
WORKDIR /runs
ENTRYPOINT ["expunge"]
CMD ["--help"]
