# The orchestrator service. Build from the repository root: docker build -f deploy/docker/orchestrator.Dockerfile -t ragserve-orchestrator .
FROM python:3.12-slim-bookworm AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY ragserve ragserve
COPY orchestrator orchestrator
RUN python -m venv /opt/ragserve/venv && \
    /opt/ragserve/venv/bin/pip install --no-cache-dir .

FROM python:3.12-slim-bookworm
RUN useradd --system --uid 10001 --no-create-home ragserve
COPY --from=build /opt/ragserve/venv /opt/ragserve/venv
ENV RAGSERVE_ORCHESTRATOR_SERVER__HOST=0.0.0.0 \
    RAGSERVE_ORCHESTRATOR_SERVER__METRICS_HOST=0.0.0.0
EXPOSE 50051 9451
USER 10001
ENTRYPOINT ["/opt/ragserve/venv/bin/python", "-m", "orchestrator"]
