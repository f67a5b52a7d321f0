"""A page about the paths of the service, without scripts and without files from elsewhere."""

import json
from collections.abc import Mapping
from html import escape
from typing import Any


def documentation(openapi: Mapping[str, Any]) -> str:
    """Returns an HTML page that shows an OpenAPI description, from `fastapi.FastAPI.openapi`."""
    info = openapi["info"]
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">',
        f"<title>{escape(info['title'])}: paths</title></head><body><main>",
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info['description'])}</p>",
        '<p>The same in a form for programs: <a href="openapi.json">openapi.json</a></p>',
    ]
    for path, methods in openapi["paths"].items():
        for method, operation in methods.items():
            parts += [f"<section><h2>{method.upper()} {escape(path)}</h2><p>{escape(operation['summary'])}</p>"]
            for parameter in operation.get("parameters", ()):
                parts += [f"<p>Query <code>{escape(parameter['name'])}</code>: {_schema(parameter['schema'])}</p>"]
            for kind, content in operation.get("requestBody", {}).get("content", {}).items():
                parts += [f"<details><summary>Takes {escape(kind)}</summary>{_schema(content['schema'])}</details>"]
            for status, answer in operation["responses"].items():
                title = f"{escape(status)} {escape(answer.get('description', ''))}"
                schemas = [content["schema"] for content in answer.get("content", {}).values() if content.get("schema")]
                parts += [f"<details><summary>{title}</summary>{''.join(map(_schema, schemas))}</details>"]
            parts += ["</section>"]
    schemas = openapi.get("components", {}).get("schemas", {})
    parts += ["<section><h2>Forms</h2>"]
    for name, schema in schemas.items():
        parts += [f"<details><summary>{escape(name)}</summary>{_schema(schema)}</details>"]
    return "".join([*parts, "</section></main></body></html>"])


def _schema(schema: Any) -> str:
    return f"<pre>{escape(json.dumps(schema, indent=2, ensure_ascii=False))}</pre>"
