# A worker, for the CPU by default. Build from the repository's root:
#   docker build -f deploy/worker.Dockerfile -t modelmill-worker .
# and for NVIDIA GPUs:
#   docker build -f deploy/worker.Dockerfile -t modelmill-worker-gpu \
#       --build-arg EXTRAS=server,gpu,transformers,diffusers,ocr,speech,language-id,tables --build-arg TORCH_INDEX= .
ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim AS build
ARG EXTRAS=server,onnx,transformers,diffusers,offline,ocr,speech,language-id,tables
# PyPI's torch for Linux on x86 brings gigabytes of CUDA. This index has builds without. Empty means PyPI.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN python -m venv /opt/modelmill
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/modelmill/bin/pip install --constraint constraints.txt \
    ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} ".[${EXTRAS}]"

FROM python:${PYTHON_VERSION}-slim
RUN groupadd --gid 10001 modelmill \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/cache/modelmill \
       --shell /usr/sbin/nologin modelmill \
    && install --directory --owner=10001 --group=10001 /var/cache/modelmill
COPY --from=build /opt/modelmill /opt/modelmill
ENV PATH=/opt/modelmill/bin:$PATH \
    HF_HOME=/var/cache/modelmill/huggingface \
    MODELMILL_CACHE_DIR=/var/cache/modelmill \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1
# A number, because Kubernetes' runAsNonRoot cannot check a name.
USER 10001:10001
CMD ["modelmill", "worker"]
