# dymn without PyTorch, for tagging and serving. About 340 MB:
#
#   docker build --tag dymn .
#   docker run --rm --volume "$PWD:/data:ro" dymn tag /data
#   docker run --rm --publish 127.0.0.1:8000:8000 dymn serve --host 0.0.0.0

FROM python:3.13-slim AS build
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev
COPY . /source
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /source
RUN python -m venv --without-pip /opt/dymn \
    && pip --python /opt/dymn/bin/python install --no-cache-dir --no-compile --constraint /source/constraints.txt "$(echo /wheels/dymn-*.whl)[serve,mqtt]" \
    && /opt/dymn/bin/python -m compileall -q --invalidation-mode unchecked-hash -x '/tests/|/pygments/' /opt/dymn/lib

FROM python:3.13-slim
COPY --from=build /opt/dymn /opt/dymn
RUN useradd --uid 1000 --create-home dymn
USER dymn
WORKDIR /data
ENV PATH="/opt/dymn/bin:$PATH"
EXPOSE 8000
ENTRYPOINT ["dymn"]
CMD ["--help"]
