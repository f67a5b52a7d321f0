# The service. /data holds the bundle and what it names: the model's code, and its weights unless the bundle has them.
# The user 10001 reads it, and writes the labels there.
#   docker build -t petm .
#   docker run --read-only --tmpfs /tmp -p 127.0.0.1:8000:8000 -v /srv/petm:/data -e PETM_API_KEY=... petm
FROM python:3.12-slim
COPY pyproject.toml README.md LICENSE /src/
COPY src /src/src
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu '/src[serve]' \
    && rm -rf /src && useradd --uid 10001 --create-home petm
USER 10001
WORKDIR /data
# Nothing but /tmp and /data is written, so the root may be read-only.
ENV HOME=/tmp PYTHONDONTWRITEBYTECODE=1
EXPOSE 8000
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/readyz', timeout=5)"]
CMD ["petm", "serve", "my.petm", "--host", "0.0.0.0", "--labels-file", "labels.jsonl"]
