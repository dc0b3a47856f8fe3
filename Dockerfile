# SPDX-License-Identifier: Apache-2.0
# Conclave on Debian 12. The steps are the scripts that set up any other machine.
#   docker build -t conclave .                        CPU
#   docker build -t conclave-cuda --target cuda .     CUDA and NCCL, from NVIDIA's wheels
# Run: docker run --rm -v "$PWD:/work" conclave ./launch/run 2 /work/my.yaml --run /work/run
FROM debian:12 AS base
WORKDIR /opt/conclave
ENV XDG_CACHE_HOME=/opt/cache
# Set-up first and alone: a change of the sources does not download LibTorch again.
COPY launch/setup launch/setup
RUN ./launch/setup

# --gpu: no GPU is visible while an image is built.
FROM base AS cuda
RUN ./launch/setup --gpu
COPY . .
RUN ./launch/build cuda conclave
ENV CONCLAVE_PRESET=cuda PATH="/opt/conclave/build/cuda/src:$PATH"
CMD ["conclave", "--help"]

# Last, so that it is what is built when no target is named.
FROM base AS cpu
COPY . .
RUN ./launch/build cpu conclave
ENV PATH="/opt/conclave/build/cpu/src:$PATH"
CMD ["conclave", "--help"]
