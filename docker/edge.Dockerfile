# Every role of a line on a CPU box: ingest, inspect, sink, dashboard. No torch: training is not for the line.
# Build from the repository root:  docker build -f docker/edge.Dockerfile -t assayline-edge:0.1.0 .

FROM python:3.11.14-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY configs ./configs
COPY engines ./engines
COPY pipeline ./pipeline
# The constraints say which versions were tried together.
RUN python -m venv /opt/assayline \
 && /opt/assayline/bin/pip install --constraint configs/constraints.txt '.[dashboard]'

FROM python:3.11.14-slim-bookworm
LABEL org.opencontainers.image.title="assayline-edge" \
      org.opencontainers.image.licenses="Apache-2.0"
# A fixed number, so that volumes can be given to it on the host.
RUN groupadd --gid 10001 assayline \
 && useradd --uid 10001 --gid assayline --create-home --shell /usr/sbin/nologin assayline \
 && install -d -o assayline -g assayline /line /line/runs
COPY --from=build /opt/assayline /opt/assayline
# Waiting threads sleep: several roles share few cores.
ENV PATH=/opt/assayline/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    OMP_WAIT_POLICY=PASSIVE
USER 10001:10001
# The inference runtime must not call home from a plant.
RUN opt_in_out --opt_out
WORKDIR /line
VOLUME ["/line/runs"]
EXPOSE 8080 9100
# /healthz answers while the role's process lives; a role with another port says so by itself.
ENV HEALTH_URL=http://127.0.0.1:9100/healthz
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(os.environ['HEALTH_URL'], timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["assayline"]
CMD ["run", "line.yaml"]
