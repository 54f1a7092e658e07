# docker build -t ans .                                       with CUDA: run it with --gpus all
# docker build -t ans --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu .      for CPUs alone
# docker run --name ans --ipc=host ans make repro && docker cp ans:/ans/reports .          docker run --rm --ipc=host ans make test
FROM python:3.12-slim-bookworm
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends git make && rm -rf /var/lib/apt/lists/*
# That index has torch as +cpu, which pip takes for the newer build of the same version.
ARG PIP_EXTRA_INDEX_URL=
ENV PIP_NO_CACHE_DIR=1
# Who runs it owns it: git refuses a repository of another user, and what a container writes need not be root's.
RUN useradd --create-home --uid 1000 ans && install -d -o ans /ans
USER 1000
WORKDIR /ans
# First what the environment is made of: a change of the code does not install it again.
COPY --chown=1000 Makefile requirements.lock ./
RUN make env
COPY --chown=1000 . .
CMD ["make", "repro"]
