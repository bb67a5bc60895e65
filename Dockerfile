# The service without torch: `docker build --target cpu .` (the default) or `--target gpu`; the offline half for
# building a bundle: `--target trainer`. Pinned by tag; packages by constraints.txt.
FROM python:3.12.11-slim-bookworm AS base
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1

FROM base AS wheel
WORKDIR /src
COPY . .
RUN PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt pip wheel --no-deps --wheel-dir /wheels .

FROM base AS cpu-packages
COPY constraints.txt /build/
COPY --from=wheel /wheels /wheels
RUN python -m venv /opt/oneslate
RUN /opt/oneslate/bin/pip install -c /build/constraints.txt "$(echo /wheels/*.whl)[cpu]"

FROM base AS gpu-packages
COPY constraints.txt constraints-gpu.txt /build/
COPY --from=wheel /wheels /wheels
RUN python -m venv /opt/oneslate
RUN /opt/oneslate/bin/pip install -c /build/constraints.txt -c /build/constraints-gpu.txt "$(echo /wheels/*.whl)[gpu]"

FROM cpu-packages AS trainer-packages
# For instance an index with torch's builds without CUDA, which are ten times smaller.
ARG PIP_EXTRA_INDEX_URL
RUN /opt/oneslate/bin/pip install -c /build/constraints.txt "$(echo /wheels/*.whl)[cpu,train]"

# What the images have in common: a user without rights, no writing below / (the service needs none).
FROM base AS runtime
ENV PATH=/opt/oneslate/bin:$PATH PYTHONDONTWRITEBYTECODE=1
RUN groupadd --gid 10001 oneslate && useradd --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin oneslate

FROM runtime AS trainer
COPY --from=trainer-packages /opt/oneslate /opt/oneslate
# A new volume takes over the owner of the folder that it covers.
RUN install -d -o 10001 -g 10001 /bundles /runs
USER 10001:10001
WORKDIR /
ENTRYPOINT ["oneslate"]
CMD ["--help"]

FROM runtime AS serving
ENV ONESLATE_HOST=0.0.0.0 ONESLATE_PORT=8000 ONESLATE_BUNDLE=/bundle
USER 10001:10001
WORKDIR /
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f'http://127.0.0.1:{os.environ[\"ONESLATE_PORT\"]}/readyz', timeout=2)"]
ENTRYPOINT ["oneslate"]
CMD ["serve"]

FROM serving AS gpu
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility ONESLATE_PROVIDER=cuda
COPY --from=gpu-packages /opt/oneslate /opt/oneslate

FROM serving AS cpu
COPY --from=cpu-packages /opt/oneslate /opt/oneslate
