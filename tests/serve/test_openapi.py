"""The description of the routes is true: requests made from it, right and wrong ones, are answered as it says."""

import json
import urllib.request
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

CASES = settings(
    max_examples=20, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
OPERATIONS = (
    ("POST", "/v2/models/{name}/infer"), ("POST", "/v2/models/{name}/versions/{version}/infer"),
    ("GET", "/v2/models/{name}"), ("GET", "/v2/models/{name}/stats"), ("GET", "/v2"), ("GET", "/v2/health/ready"),
    ("POST", "/v2/repository/index"), ("POST", "/v2/repository/models/{name}/unload"),
    ("GET", "/metrics"), ("GET", "/"),
)  # fmt: skip


@pytest.fixture(scope="session")
def document(address: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{address}/openapi.json") as reply:
        found: dict[str, Any] = json.load(reply)
    return found


def test_every_route_is_described_with_its_errors(document: dict[str, Any]) -> None:
    paths = document["paths"]
    assert len(paths) == 17
    for operations in paths.values():
        for operation in operations.values():
            assert operation["summary"]
            assert {"200", "400", "413", "503"} <= set(operation["responses"])
            assert "422" not in operation["responses"]  # nothing is validated behind our back
    infer = paths["/v2/models/{name}/infer"]["post"]
    assert set(infer["requestBody"]["content"]) == {"application/json", "application/octet-stream"}
    assert "Retry-After" in infer["responses"]["503"]["headers"]
    schemas = document["components"]["schemas"]
    assert schemas["Input"]["properties"]["name"]["enum"] == ["input"]
    used = {part.split('"')[0] for part in json.dumps(document).split("#/components/schemas/")[1:]}
    assert used <= set(schemas)


@pytest.mark.parametrize(
    ("method", "path", "wrong"),
    [
        pytest.param(method, path, wrong, id=f"{method}-{path}-{'wrong' if wrong else 'right'}")
        for method, path in OPERATIONS
        for wrong in ((False, True) if "{" in path else (False,))  # nothing else can be wrong
    ],
)
def test_what_schemathesis_sends_is_answered_as_described(
    document: dict[str, Any], address: str, method: str, path: str, wrong: bool
) -> None:
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    import requests
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    schema = schemathesis.openapi.from_dict(document)
    operation = schema[path][method]
    mode = schemathesis.GenerationMode.NEGATIVE if wrong else schemathesis.GenerationMode.POSITIVE
    true = [
        not_a_server_error, checks.status_code_conformance, checks.content_type_conformance,
        checks.response_headers_conformance, checks.response_schema_conformance,
    ]  # fmt: skip
    with requests.Session() as session:

        @settings(
            max_examples=25, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def sends(case: Any) -> None:
            reply = case.call(base_url=address, session=session, timeout=20)
            if reply.status_code == 503:
                assert reply.json()["error"]
                return
            case.validate_response(reply, checks=true)

        sends()
