"""What /openapi.json says beyond the list of routes: parameters, bodies, answers and errors of each, written by hand.

Tensors never pass through pydantic, so there are no models that FastAPI could read this from.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pliant_runtime.serving.messages import JSON, OCTETS, Limits
from pliant_runtime.serving.model import Model

Json = dict[str, Any]

TEXT, PAGE = "text/plain", "text/html"
_REASONS = {
    400: "The request is wrong; `error` says what would be right.",
    404: "There is nothing at this address.",
    405: "The address takes another method; see `Allow`.",
    408: "The body did not come in in time.",
    413: "The body, or the JSON in it, is too large.",
    415: "The body is encoded or compressed in a way that is not supported.",
    431: "Address and headers are too large.",
    500: "A bug; the server's log has more.",
    503: "Too busy to keep the promise (`Retry-After` says when to come back), or about to stop.",
}
_EVERYWHERE = (400, 405, 408, 413, 431, 500, 503)


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(properties: Json, required: Sequence[str] = ()) -> Json:
    return {"type": "object", "properties": properties, **({"required": list(required)} if required else {})}


def _content(kind: str, schema: Json) -> Json:
    return {"content": {kind: {"schema": schema}}}


def _refused(status: int) -> Json:
    found: Json = {"description": _REASONS[status], **_content(JSON, _ref("Error"))}
    if status == 503:
        told = "Seconds after which trying again makes sense; absent where it never will."
        found["headers"] = {"Retry-After": {"description": told, "schema": {"type": "integer"}}}
    return found


def operation(
    answer: str, *, kind: str = JSON, schema: Json | None = None, refusals: Sequence[int] = (), more: Json | None = None
) -> Json:
    """The description of one operation.

    Args:
        answer: what a 200 is.
        kind: its content type.
        schema: of its body.
        refusals: statuses of its own; those that any request may get are added.
        more: parameters, request body, further answers.
    """
    said: Json = {"200": {"description": answer, **_content(kind, schema or {"type": "string"})}}
    said |= {str(status): _refused(status) for status in sorted({*_EVERYWHERE, *refusals})}
    found = {"responses": said, **(more or {})}
    found["responses"] |= found.pop("answers", {})
    return found


def name_parameters(model_name: str, version: str | None = None) -> list[Json]:
    """The parts of an address that name a model, and a version of it."""
    names = {"name": [model_name]} | ({} if version is None else {"version": ["1", version]})
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "enum": values}}
        for name, values in names.items()
    ]


_INTEGER, _STRING, _FLAG = {"type": "integer"}, {"type": "string"}, {"type": "boolean"}
_LENGTH: Json = {
    "name": "Inference-Header-Content-Length", "in": "header", "required": False,
    "schema": {"type": "integer", "minimum": 0},
    "description": "Bytes of JSON at the beginning of the body; what follows is binary tensors.",
}  # fmt: skip
_PIN: Json = {
    "name": "x-subnet", "in": "header", "required": False, "schema": {"type": "integer", "minimum": 0},
    "description": "Sub-network that must answer an octet-stream; JSON has `parameters.subnet` for this.",
}  # fmt: skip


def inference(parameters: list[Json]) -> Json:
    """The description of an inference."""
    octets = {"type": "string", "format": "binary", "description": "Rows of the one input, little endian."}
    body = {"required": True, "content": {JSON: {"schema": _ref("Inference")}, OCTETS: {"schema": octets}}}
    headers = {
        "x-subnet": {"description": "The sub-network that answered.", "schema": _INTEGER, "required": True},
        "Inference-Header-Content-Length": {"description": "Bytes of JSON; binary tensors follow.", "schema": _INTEGER},
    }
    answer = {
        "description": "Outputs: as JSON, as JSON with binary tensors behind it, or as bytes of the first output.",
        "headers": headers,
        "content": {JSON: {"schema": _ref("Outputs")}, OCTETS: {"schema": {"type": "string", "format": "binary"}}},
    }
    more = {"parameters": [*parameters, _LENGTH, _PIN], "requestBody": body, "answers": {"200": answer}}
    return operation("", refusals=(404, 415), more=more)


def schemas(model: Model, limits: Limits) -> Json:
    """The components: what travels in JSON, for the model that serves now."""
    tensor = _object({"name": _STRING, "datatype": _STRING, "shape": {"type": "array", "items": _INTEGER}}, ("name",))
    inputs = [port.name for port in model.inputs]
    promise = "Microseconds within which the answer is wanted; refused with 503 where that cannot be."
    subnet = {"type": "integer", "minimum": 0, "maximum": len(model.table) - 1}
    given = _object(
        {
            "name": {"type": "string", "enum": inputs},
            "datatype": {"type": "string", "enum": sorted({port.datatype for port in model.inputs})},
            "shape": {
                "type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0},
                "description": f"Rows first, 1 to {limits.rows}.",
            },
            "data": {"type": "array", "description": "Values, flat or nested."},
            "parameters": _object({"binary_data_size": {"type": "integer", "minimum": 0}}),
        },
        ("name", "datatype", "shape"),
    )  # fmt: skip
    asked = _object(
        {
            "id": _STRING,
            "inputs": {"type": "array", "minItems": len(inputs), "maxItems": len(inputs), "items": _ref("Input")},
            "outputs": {"type": "array", "items": _ref("Output"), "maxItems": len(model.outputs)},
            "parameters": _object(
                {
                    "subnet": subnet | {"description": "The sub-network that must answer."},
                    "timeout": {"type": "integer", "minimum": 1, "description": promise},
                    "binary_data_output": _FLAG,
                }
            ),
        },
        ("inputs",),
    )
    port = _object({"name": _STRING, "datatype": _STRING, "shape": {"type": "array", "items": _INTEGER}})
    number = {"type": "number"}
    reason = {"type": "string", "description": "What was wrong, and what would be right."}
    return {
        "Error": _object({"error": reason}, ("error",)),
        "Inference": asked,
        "Input": given,
        "Output": _object(
            {
                "name": {"type": "string", "enum": [port.name for port in model.outputs]},
                "parameters": _object({"binary_data": _FLAG}),
            },
            ("name",),
        ),
        "Outputs": _object(
            {
                "model_name": _STRING, "model_version": _STRING, "id": _STRING,
                "parameters": _object({"subnet": subnet}, ("subnet",)),
                "outputs": {"type": "array", "items": tensor},
            },
            ("model_name", "outputs", "parameters"),
        ),
        "Metadata": _object(
            {
                "name": _STRING, "versions": {"type": "array", "items": _STRING}, "platform": _STRING,
                "inputs": {"type": "array", "items": port}, "outputs": {"type": "array", "items": port},
                "parameters": {"type": "object"},
            },
            ("name", "inputs", "outputs"),
        ),
        "Server": _object(
            {"name": _STRING, "version": _STRING, "extensions": {"type": "array", "items": _STRING}}, ("name",)
        ),
        "Live": _object({"live": _FLAG}, ("live",)),
        "Ready": _object({"ready": _FLAG}, ("ready",)),
        "Index": {"type": "array", "items": _object({"name": _STRING, "version": _STRING, "state": _STRING})},
        "Stats": _object(
            {"model": _STRING, "version": _STRING, "slo_s": number, "policy": _STRING, "counters": {"type": "object"}},
            ("model", "slo_s", "counters"),
        ),
    }  # fmt: skip


def described(document: Mapping[str, Any], model: Model, limits: Limits) -> Json:
    """FastAPI's list of routes with our schemas."""
    return {**document, "components": {"schemas": schemas(model, limits)}}
