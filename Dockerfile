# docker build -t ans .                                       with CUDA: run it with --gpus all
# docker build -t ans --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu .      for CPUs alone
# docker run --rm ans make repro          docker run --rm ans make test
FROM python:3.12-slim-bookworm
RUN apt-get update && apt-get install -y --no-install-recommends git make && rm -rf /var/lib/apt/lists/*
# That index has torch as +cpu, which pip takes for the newer build of the same version.
ARG PIP_EXTRA_INDEX_URL=
WORKDIR /ans
# First what the environment is made of: a change of the code does not install it again.
COPY Makefile requirements.lock ./
RUN make env
COPY . .
CMD ["make", "repro"]
