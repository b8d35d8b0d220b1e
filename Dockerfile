# Both commands of the README in a container:
#   docker build -t shiqrun .          installs everything; --build-arg PIP_INDEX_URL=... for an index of your own
#   docker run --rm -it shiqrun        make demo; `docker run --rm shiqrun make test` runs the tests
#   docker build --target test .       runs the tests while it builds; --target demo the demo
# torch without CUDA is smaller: --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
FROM python:3.11-slim AS base
RUN apt-get update && apt-get install --yes --no-install-recommends git make && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home user && mkdir /shiqrun && chown user /shiqrun
USER user
WORKDIR /shiqrun
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
COPY --chown=user . .
RUN make install
ENV PATH="/shiqrun/.venv/bin:$PATH"

FROM base AS test
RUN make test

FROM base AS demo
RUN make demo

FROM base
CMD ["make", "demo"]
