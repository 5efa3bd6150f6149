# The generator service. Build from the repository root: docker build -f deploy/docker/generator.Dockerfile -t ragserve-generator .
FROM python:3.12-slim-bookworm AS build
# An index that holds the torch build wanted. For CPU nodes give the index of the CPU builds that the PyTorch site
# names; without it pip takes the CUDA build, which is several gigabytes larger.
ARG TORCH_INDEX_URL=
# The C kernels are built here.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY ragserve ragserve
COPY generator_svc generator_svc
RUN python -m venv /opt/ragserve/venv && \
    if [ -n "${TORCH_INDEX_URL}" ]; then \
      /opt/ragserve/venv/bin/pip install --no-cache-dir --index-url "${TORCH_INDEX_URL}" torch==2.13.0; fi && \
    /opt/ragserve/venv/bin/pip install --no-cache-dir '.[generator]'

FROM python:3.12-slim-bookworm
# cpu or gpu: on a GPU Triton builds what launches its kernels when they are first used, with a C compiler.
ARG DEVICE=cpu
# hadolint ignore=DL3008
RUN if [ "${DEVICE}" = gpu ]; then \
      apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*; fi
RUN useradd --system --uid 10001 --no-create-home ragserve
COPY --from=build /opt/ragserve/venv /opt/ragserve/venv
COPY demo/model/ragserve.json /opt/ragserve/model/ragserve.json
COPY demo/model/generator /opt/ragserve/model/generator
# The user has no home, and the root file system may be read-only.
ENV TRITON_CACHE_DIR=/tmp/triton \
    RAGSERVE_GENERATOR_MODEL=/opt/ragserve/model \
    RAGSERVE_GENERATOR_SERVER__HOST=0.0.0.0 \
    RAGSERVE_GENERATOR_SERVER__METRICS_HOST=0.0.0.0
EXPOSE 50062 9462
USER 10001
ENTRYPOINT ["/opt/ragserve/venv/bin/python", "-m", "generator_svc"]
