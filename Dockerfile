# Inscape on a machine of your own; the page is at http://localhost:7860.
#   docker build -t inscape . && docker run -p 7860:7860 inscape
# With an NVIDIA GPU, which also offers the published checkpoints (spaces/space_app.py says which, and how to choose):
#   docker build -t inscape --build-arg TORCH=cu130 .
#   docker run --gpus all -p 7860:7860 -v inscape:/home/inscape inscape
# TORCH is a build of PyTorch as `uv pip install --torch-backend` names it: cpu, cu126, cu130, …
ARG PYTHON=3.12

# The web server and what it stands on, the hash of every file checked. Packages first: they weigh most and change least.
FROM python:${PYTHON}-slim AS web
COPY spaces/web.lock /tmp/
RUN pip install --no-cache-dir --require-hashes -r /tmp/web.lock

# The same tree as the Space's: nothing but what the page needs.
FROM web AS tree
WORKDIR /inscape
COPY LICENSE requirements.txt constraints.txt ./
COPY spaces spaces
COPY latent_core latent_core
COPY app app
COPY assets assets
RUN python spaces/build.py --no-check

FROM web
ARG TORCH=cpu
WORKDIR /inscape
COPY constraints.txt /tmp/
COPY --from=tree /inscape/build/space/requirements.txt ./
RUN pip install --no-cache-dir uv \
 && uv pip install --system --no-cache --torch-backend=${TORCH} \
      -r requirements.txt gradio huggingface_hub -c /tmp/constraints.txt
COPY --from=tree /inscape/build/space ./
RUN useradd --create-home inscape
USER inscape
ENV PYTHONUNBUFFERED=1 GRADIO_SERVER_PORT=7860
EXPOSE 7860
# The published checkpoints are fetched before the page is served, once.
HEALTHCHECK --start-period=30m --interval=30s --timeout=5s \
  CMD ["python", "-c", "import os, urllib.request as web; web.urlopen(f'http://127.0.0.1:{os.environ[\"GRADIO_SERVER_PORT\"]}/health', timeout=4)"]
CMD ["python", "app.py"]
