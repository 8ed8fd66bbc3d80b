# The commands in a container that needs no root. From the repository's root, with BuildKit:
#
#   docker build --tag classifier-search:cuda .                                # NVIDIA GPUs too
#   docker build --tag classifier-search --build-arg PIP_EXTRA_INDEX_URL=… .   # CPU only
#
# docs/install.md says how to run it. Versions are those of constraints.txt.

ARG PYTHON=3.11

# The dependencies alone, so that a change of the code installs none of them again.
FROM python:${PYTHON}-slim-bookworm AS requirements
WORKDIR /source
COPY pyproject.toml ./
RUN python -c "import tomllib; \
    project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
    extras = [project['optional-dependencies'][name] for name in ('export', 'serve', 'heif')]; \
    print(*project['dependencies'], *sum(extras, []), sep='\n')" > requirements.txt

FROM python:${PYTHON}-slim-bookworm AS wheel
WORKDIR /source
COPY pyproject.toml LICENSE ./
COPY docs/package.md docs/
COPY spaces spaces
COPY trainables trainables
COPY search search
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim-bookworm
ARG UID=1000
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1

# PyPI's wheels of PyTorch for Linux bring CUDA's libraries; those of PyTorch's own index for CPUs,
# named 2.x+cpu, count as newer than PyPI's of the same version. pip reads this argument by itself.
ARG PIP_EXTRA_INDEX_URL
RUN --mount=type=bind,source=constraints.txt,target=/tmp/constraints.txt \
    --mount=type=bind,from=requirements,source=/source/requirements.txt,target=/tmp/requirements.txt \
    pip install --no-cache-dir --constraint /tmp/constraints.txt --requirement /tmp/requirements.txt
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-deps /wheels/*.whl \
    && useradd --uid "${UID}" --create-home classifier

USER ${UID}
WORKDIR /home/classifier
EXPOSE 8000

# Healthy is a server that answers, and any other command for as long as it runs.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD ["sh", "-c", "\
    ! grep --quiet --null-data --line-regexp serve /proc/1/cmdline \
    || python -c 'import urllib.request as r; r.urlopen(\"http://127.0.0.1:8000/healthz\", timeout=4)'"]

ENTRYPOINT ["classifier-search"]
CMD ["--help"]
