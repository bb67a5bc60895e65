# What the service needs without torch: `docker build --target cpu .` (the default) or `--target gpu`; the offline half
# and the demo: `--target trainer`; Locust: `--target loadtest`. Labelled with a commit: `--build-arg REVISION=...`.
#
# Packages are pinned by constraints.txt, the base by its tag; whoever needs it to the byte appends the digest that
# `docker buildx imagetools inspect` shows. Packages come before our own code: a change of code installs none again.
FROM python:3.12.11-slim-bookworm AS base
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 ORT_DISABLE_TELEMETRY=1

FROM base AS packages
WORKDIR /build
COPY pyproject.toml constraints.txt constraints-gpu.txt ./
# One list of requirements for each extra: the service's own, and the extra's.
RUN python -c "import pathlib, tomllib; project = tomllib.loads(pathlib.Path('pyproject.toml').read_text())['project']; [pathlib.Path(extra + '.txt').write_text('\n'.join(project['dependencies'] + needs)) for extra, needs in project['optional-dependencies'].items()]"

FROM base AS wheel
WORKDIR /src
COPY . .
RUN PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt pip wheel --no-deps --wheel-dir /wheels .

FROM packages AS cpu-packages
RUN python -m venv /opt/oneslate && /opt/oneslate/bin/pip install -c constraints.txt -r cpu.txt
COPY --from=wheel /wheels /wheels
RUN /opt/oneslate/bin/pip install --no-deps --no-index /wheels/*.whl && /opt/oneslate/bin/pip check

FROM packages AS gpu-packages
RUN python -m venv /opt/oneslate && /opt/oneslate/bin/pip install -c constraints.txt -c constraints-gpu.txt -r gpu.txt
COPY --from=wheel /wheels /wheels
RUN /opt/oneslate/bin/pip install --no-deps --no-index /wheels/*.whl && /opt/oneslate/bin/pip check

FROM packages AS trainer-packages
# For instance an index with torch's builds without CUDA, which are ten times smaller.
ARG PIP_EXTRA_INDEX_URL
RUN python -m venv /opt/oneslate && /opt/oneslate/bin/pip install -c constraints.txt -r cpu.txt -r train.txt
COPY --from=wheel /wheels /wheels
RUN /opt/oneslate/bin/pip install --no-deps --no-index /wheels/*.whl && /opt/oneslate/bin/pip check

FROM packages AS loadtest-packages
RUN python -m venv /opt/oneslate && /opt/oneslate/bin/pip install -c constraints.txt -r load.txt
COPY --from=wheel /wheels /wheels
RUN /opt/oneslate/bin/pip install --no-deps --no-index /wheels/*.whl && /opt/oneslate/bin/pip check

# What the images have in common: a user without rights, no writing below / but in volumes and /tmp.
FROM base AS runtime
ENV PATH=/opt/oneslate/bin:$PATH PYTHONDONTWRITEBYTECODE=1
RUN groupadd --gid 10001 oneslate && useradd --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin oneslate
# A new volume takes over the owner of the folder that it covers.
RUN install -d -o 10001 -g 10001 /bundles /log /runs
ARG REVISION=
LABEL org.opencontainers.image.title="OneSlate" \
      org.opencontainers.image.description="Whole-slate recommendation: a session-wise generative recommender, from an event log to slates over HTTP" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="docker.io/library/python:3.12.11-slim-bookworm" \
      org.opencontainers.image.revision="$REVISION"
USER 10001:10001
WORKDIR /

FROM runtime AS trainer
ENV MPLCONFIGDIR=/tmp/matplotlib
COPY --from=trainer-packages /opt/oneslate /opt/oneslate
ENTRYPOINT ["oneslate"]
CMD ["--help"]

FROM runtime AS loadtest
COPY --from=loadtest-packages /opt/oneslate /opt/oneslate
COPY loadtests/locustfile.py /opt/locustfile.py
EXPOSE 8089
ENTRYPOINT ["locust", "-f", "/opt/locustfile.py"]
CMD ["--help"]

FROM runtime AS serving
ENV ONESLATE_HOST=0.0.0.0 ONESLATE_PORT=8000 ONESLATE_BUNDLE=/bundle
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
