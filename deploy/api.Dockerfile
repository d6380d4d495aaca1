# The HTTP API. It runs no models, so this image has no torch and no other runtime.
# Build from the repository's root: docker build -f deploy/api.Dockerfile -t modelmill-api .
ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim AS build
RUN python -m venv /opt/modelmill
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/modelmill/bin/pip install --constraint constraints.txt ".[server]"

FROM python:${PYTHON_VERSION}-slim
RUN groupadd --gid 10001 modelmill \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent \
       --shell /usr/sbin/nologin modelmill
COPY --from=build /opt/modelmill /opt/modelmill
ENV PATH=/opt/modelmill/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1
EXPOSE 8000
# A number, because Kubernetes' runAsNonRoot cannot check a name.
USER 10001:10001
CMD ["modelmill", "api"]
