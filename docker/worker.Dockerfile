# The inspection worker of a line with an NVIDIA GPU, on TensorRT; the other roles run from edge.Dockerfile.
# Build from the repository root:  docker build -f docker/worker.Dockerfile -t assayline-worker:0.1.0 .
# The base is NVIDIA's monthly release (TensorRT 10.14, CUDA 13.1, Python 3.12); its tag never moves.

FROM nvcr.io/nvidia/tensorrt:25.12-py3 AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY configs ./configs
COPY engines ./engines
COPY pipeline ./pipeline
# TensorRT comes with the base, whose packages the environment sees; pycuda is compiled for its CUDA.
RUN python3 -m venv --system-site-packages /opt/assayline \
 && /opt/assayline/bin/pip install --constraint configs/constraints.txt '.[gpu]'

FROM nvcr.io/nvidia/tensorrt:25.12-py3
LABEL org.opencontainers.image.title="assayline-worker" \
      org.opencontainers.image.licenses="Apache-2.0"
# A fixed number, the same as in edge.Dockerfile, so that both share volumes.
RUN groupadd --gid 10001 assayline \
 && useradd --uid 10001 --gid assayline --create-home --shell /usr/sbin/nologin assayline \
 && install -d -o assayline -g assayline /line /line/runs /line/.bundle-engines
COPY --from=build /opt/assayline /opt/assayline
# Whatever a library caches goes to /tmp: the rest of the container may be read only.
ENV PATH=/opt/assayline/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    OMP_WAIT_POLICY=PASSIVE \
    XDG_CACHE_HOME=/tmp/cache \
    CUDA_CACHE_PATH=/tmp/cache/cuda \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
# The CPU runtime that comes along must not call home from a plant.
RUN opt_in_out --opt_out
WORKDIR /line
VOLUME ["/line/runs", "/line/.bundle-engines"]
EXPOSE 9101
# Healthy while the inspection loop itself turns; a process that answers while its GPU hangs is not.
HEALTHCHECK --interval=15s --timeout=10s --start-period=180s --retries=3 \
    CMD ["assayline", "doctor", "line.yaml", "--worker"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["assayline"]
CMD ["inspect", "line.yaml"]
