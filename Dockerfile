# syntax=docker/dockerfile:1
#
#   docker build -t dalorra-service .                              for the CPU
#   docker build -t dalorra-service:cuda --build-arg DEVICE=cuda .  for NVIDIA GPUs
#   … --build-arg BASE_MODEL=fetched                               base model in the image
#
# DEVICE: cpu or cuda. BASE_MODEL: mounted (the default base model is fetched once, at the first
# start, into the volume at /var/cache/dalorra) or fetched (at build: no network when it starts).
ARG PYTHON_VERSION=3.12
ARG DEVICE=cpu
ARG BASE_MODEL=mounted

FROM python:${PYTHON_VERSION}-slim AS python
ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PATH=/opt/dalorra/bin:$PATH \
    DALORRA_CACHE=/var/cache/dalorra \
    HF_HOME=/var/cache/dalorra/huggingface


FROM python AS tools
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/dalorra

# One of the next two, by DEVICE. PyTorch's wheels for CUDA are those of the package index; those without it are much smaller.
FROM tools AS tools-cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_EXTRA_INDEX_URL=$TORCH_INDEX

FROM tools AS tools-cuda

# hadolint ignore=DL3006
FROM tools-${DEVICE} AS install
WORKDIR /src
# First what others wrote: that layer stays while only the code changes.
COPY pyproject.toml ./
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print(*p['dependencies'], *(d for e in ('server', 'mcp', 'otel', 'shared') \
for d in p['optional-dependencies'][e]), sep='\n')" > requirements.txt \
 && pip install --no-cache-dir -r requirements.txt
COPY README.md LICENSE ./
COPY dalorra dalorra
COPY service service
COPY training training
RUN pip install --no-cache-dir --no-deps . && dalorra --version


# One of the next two, by BASE_MODEL.
FROM install AS base-model-mounted
RUN mkdir -p "$DALORRA_CACHE"

FROM install AS base-model-fetched
RUN dalorra fetch

# hadolint ignore=DL3006
FROM base-model-${BASE_MODEL} AS base-model


FROM python AS service
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="DALorRA Service" \
      org.opencontainers.image.description="LLM decisions with an honest probability and a measure of doubt" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version=$VERSION \
      org.opencontainers.image.revision=$REVISION
RUN groupadd --gid 10001 dalorra \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin dalorra
COPY --from=install /opt/dalorra /opt/dalorra
COPY --from=base-model --chown=10001:10001 /var/cache/dalorra /var/cache/dalorra
# Numbers, so that Kubernetes can see that it is not root.
USER 10001:10001
WORKDIR /tmp
ENV DALORRA_HOST=0.0.0.0 \
    DALORRA_PORT=8000 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
EXPOSE 8000
# The first start may fetch and convert the base model before the server is ready.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['DALORRA_PORT'] + '/health/ready', timeout=4)"]
ENTRYPOINT ["dalorra", "serve"]
