# The harness, its baselines and every locked dependency: `docker run ddchallenge run --dataset digits`.
#
#   make image                      or: docker build -t ddchallenge .
#   docker run --rm ddchallenge     what it can do
#
# With a digest instead of a tag (--build-arg PYTHON=python@sha256:...) the base is pinned to the bit.
ARG PYTHON=python:3.11-slim-bookworm

# The locked packages, PyTorch with CUDA among them: one layer of about 6 GB that changes with the
# lock only. They are compiled here, since a box's read-only root takes no bytecode later.
FROM ${PYTHON} AS dependencies
ENV PATH=/opt/ddchallenge/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
COPY requirements.lock /opt/
RUN python -m venv /opt/ddchallenge && \
    pip install --no-cache-dir --no-deps --require-hashes -r /opt/requirements.lock

FROM dependencies AS wheel
COPY . /source
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheel /source

FROM dependencies
COPY --from=wheel /wheel /opt/wheel
RUN pip install --no-cache-dir --no-deps --no-index /opt/wheel/*.whl && \
    groupadd --gid 10001 ddchallenge && \
    useradd --uid 10001 --gid 10001 --create-home ddchallenge && \
    # For `--user` with an id of the host's, to whom the results shall belong.
    chmod 0777 /home/ddchallenge
# USER is for libraries that ask for a name and find an id without one.
ENV HOME=/home/ddchallenge \
    USER=ddchallenge \
    DDCHALLENGE_CACHE=/home/ddchallenge/cache \
    NO_ALBUMENTATIONS_UPDATE=1
ARG VERSION=
ARG COMMIT=
ENV DDCHALLENGE_COMMIT=${COMMIT}
LABEL org.opencontainers.image.title="ddchallenge" \
      org.opencontainers.image.description="Ten minutes of any image generator, scored as a training set" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${COMMIT}"
USER 10001:10001
WORKDIR /home/ddchallenge
ENTRYPOINT ["ddchallenge"]
CMD ["--help"]
