# asr serve as a user without rights, in an image without compilers.
#   docker build -t asr .        (CPU only and much smaller: --build-arg TORCH_INDEX=<PyTorch's index of CPU wheels>)
#   docker run --rm -p 2700:2700 --read-only --tmpfs /tmp asr
FROM python:3.12-slim AS build
ARG TORCH_INDEX=""
RUN python -m venv /opt/asr
ENV PATH=/opt/asr/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN if [ -n "$TORCH_INDEX" ]; then pip install "torch>=2.11,<2.12" "torchaudio>=2.11,<2.12" --index-url "$TORCH_INDEX"; fi
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY asr asr
COPY server server
COPY client client
RUN pip install ".[redis]"

FROM python:3.12-slim
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin asr
COPY --from=build /opt/asr /opt/asr
COPY models /srv/asr/models
ENV PATH=/opt/asr/bin:$PATH PYTHONUNBUFFERED=1 ASR_MODELS=/srv/asr/models ASR_HOST=0.0.0.0 ASR_PORT=2700
# The search is compiled now, for any processor, and not by every container, which has no place to keep it.
ENV NUMBA_CPU_NAME=generic
RUN python -c "from asr import Recognizer; Recognizer.load('en')"
USER 10001
EXPOSE 2700
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["python", "-c", \
    "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"ASR_PORT\"]}/healthz', timeout=4)"]
ENTRYPOINT ["asr", "serve"]
