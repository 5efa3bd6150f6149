# The retriever service. Build from the repository root: docker build -f deploy/docker/retriever.Dockerfile -t ragserve-retriever .
FROM python:3.12-slim-bookworm AS build
# cpu or gpu: which of faiss-cpu/onnxruntime and faiss-gpu/onnxruntime-gpu is installed.
ARG DEVICE=cpu
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY ragserve ragserve
COPY retriever_svc retriever_svc
RUN python -m venv /opt/ragserve/venv && \
    /opt/ragserve/venv/bin/pip install --no-cache-dir ".[retriever,${DEVICE}]"

FROM python:3.12-slim-bookworm
RUN useradd --system --uid 10001 --no-create-home ragserve
COPY --from=build /opt/ragserve/venv /opt/ragserve/venv
COPY demo/model/ragserve.json /opt/ragserve/model/ragserve.json
COPY demo/model/query_encoder /opt/ragserve/model/query_encoder
COPY demo/kb /opt/ragserve/knowledge
ENV RAGSERVE_RETRIEVER_MODEL=/opt/ragserve/model \
    RAGSERVE_RETRIEVER_KNOWLEDGE=/opt/ragserve/knowledge \
    RAGSERVE_RETRIEVER_SERVER__HOST=0.0.0.0 \
    RAGSERVE_RETRIEVER_SERVER__METRICS_HOST=0.0.0.0
EXPOSE 50061 9461
USER 10001
ENTRYPOINT ["/opt/ragserve/venv/bin/python", "-m", "retriever_svc"]
