"""Reading requests and writing answers: the three forms, and a reason for everything that is wrong."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pliant_runtime import load
from pliant_runtime.serving import protocol
from pliant_runtime.serving.messages import Limits, Refusal
from pliant_runtime.serving.model import Model, inputs_of, measure, samples
from pliant_runtime.serving.table import Table

LIMITS = Limits(rows=8, json=20_000)


@pytest.fixture(scope="module")
def model(artifact: Path) -> Model:
    family = load(artifact)
    return Model(family, Table((1,), ((0.001,), (0.002,), (0.003,)), (0.7, 0.8, 0.9)))


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "input", "datatype": "UINT8", "shape": [1, 6], "data": [1, 2, 3, 4, 5, 6]} | changes


def read(model: Model, document: Any, tail: bytes = b"", **headers: str) -> protocol.Inference:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    told = {name.replace("_", "-"): value for name, value in headers.items()}
    if tail:
        told["inference-header-content-length"] = str(len(text))
    return protocol.read(told, text + tail, model, LIMITS)


def test_json_flat_and_nested(model: Model) -> None:
    flat = read(model, {"inputs": [tensor(shape=[2, 6], data=list(range(12)))], "id": "7"})
    nested = read(model, {"inputs": [tensor(shape=[2, 6], data=[list(range(6)), list(range(6, 12))])]})
    assert flat.arrays[0].dtype == np.uint8
    assert flat.arrays[0].tolist() == nested.arrays[0].tolist() == [list(range(6)), list(range(6, 12))]
    assert (flat.rows, flat.number, flat.pin, flat.promise_s) == (2, "7", None, None)


def test_binary(model: Model) -> None:
    x = np.arange(12, dtype=np.uint8)
    item = tensor(shape=[2, 6], parameters={"binary_data_size": 12})
    del item["data"]
    asked = read(model, {"inputs": [item], "parameters": {"subnet": 1, "timeout": 5000}}, x.tobytes())
    assert asked.arrays[0].ravel().tolist() == x.tolist()
    assert (asked.pin, asked.promise_s) == (1, 0.005)


def test_octet_stream(model: Model) -> None:
    headers = {"content-type": "application/octet-stream", "x-subnet": "2"}
    asked = protocol.read(headers, bytes(range(12)), model, LIMITS)
    assert (asked.rows, asked.pin, asked.bare) == (2, 2, True)


def test_the_answer_in_json_in_binary_and_bare(model: Model) -> None:
    out = np.array([[1.5, np.nan, np.inf]], np.float32)
    asked = read(model, {"inputs": [tensor()], "id": "a"})
    told = protocol.write(asked, [out], 1, model)
    data = json.loads(told.body)
    assert data["outputs"][0]["data"] == [1.5, None, None]
    assert data["parameters"] == {"subnet": 1}
    assert data["id"] == "a"
    assert told.headers["x-subnet"] == "1"
    told = protocol.write(
        read(model, {"inputs": [tensor()], "parameters": {"binary_data_output": True}}), [out], 1, model
    )
    split = int(told.headers["Inference-Header-Content-Length"])
    assert json.loads(told.body[:split])["outputs"][0]["parameters"] == {"binary_data_size": 12}
    assert told.body[split:] == out.tobytes()
    bare = protocol.read({"content-type": "application/octet-stream"}, bytes(6), model, LIMITS)
    assert protocol.write(bare, [out], 1, model).body == out.tobytes()


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"[" * 5000, "nested"),
        (b"[]", "a JSON object"),
        (b'{"inputs": 3}', "list of tensors"),
        ({"inputs": []}, "'input' is missing"),
        ({"inputs": [3]}, "must be an object"),
        ({"inputs": [tensor(name="y")]}, "takes input"),
        ({"inputs": [tensor(), tensor()]}, "twice"),
        ({"inputs": [tensor(datatype="FP32")]}, "takes UINT8"),
        ({"inputs": [tensor(shape=[1, 5])]}, r"\[-1, 6\]"),
        ({"inputs": [tensor(shape="1x6")]}, "whole numbers"),
        ({"inputs": [tensor(shape=[True, 6])]}, "whole numbers"),
        ({"inputs": [tensor(shape=[-1, 6])]}, "whole numbers"),
        ({"inputs": [tensor(shape=[0, 6], data=[])]}, "1 to 8 rows"),
        ({"inputs": [tensor(shape=[9, 6], data=[0] * 54)]}, "1 to 8 rows"),
        ({"inputs": [tensor(data=[1, 2, 3])]}, "6 values"),
        ({"inputs": [tensor(data=[1.5] * 6)]}, "6 values for UINT8, got 6 of float64"),
        ({"inputs": [tensor(data=[True] * 6)]}, "of bool"),
        ({"inputs": [tensor(data=["1"] * 6)]}, "6 values"),
        ({"inputs": [tensor(data=[300] * 6)]}, "from 0 to 255"),
        ({"inputs": [tensor(data=[-1] * 6)]}, "from 0 to 255"),
        ({"inputs": [tensor(data=[10**30] * 6)]}, "6 values"),
        ({"inputs": [tensor(data=[[1, 2, 3], [4, 5]])]}, "no regular array"),
        ({"inputs": [tensor(data=[[1, 2, 3], [4, 5, 6]])]}, "shape"),
        ({"inputs": [tensor(data=None)]}, "no data"),
        (b'{"inputs": [{"name": "input", "datatype": "UINT8", "shape": [1, 6], "data": [NaN]}]}', "NaN"),
        ({"inputs": [tensor()], "parameters": {"subnet": 3}}, "0 to 2"),
        ({"inputs": [tensor()], "parameters": {"subnet": True}}, "number of a sub-network"),
        ({"inputs": [tensor()], "parameters": {"timeout": 0}}, "microseconds"),
        ({"inputs": [tensor()], "parameters": []}, "must be an object"),
        ({"inputs": [tensor()], "outputs": [{"name": "z"}]}, "no output"),
        ({"inputs": [tensor()], "outputs": 3}, "`outputs`"),
        ({"inputs": [tensor()], "id": 3}, "string"),
    ],
)
def test_wrong_requests_get_a_reason(model: Model, document: Any, said: str) -> None:
    with pytest.raises(Refusal, match=said) as caught:
        read(model, document)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("size", "tail", "said"), [(6, b"123", "needs 6"), (5, b"12345", "has 6"), (6, b"1" * 7, "no input")]
)
def test_binary_data_must_fit(model: Model, size: int, tail: bytes, said: str) -> None:
    item = {"name": "input", "datatype": "UINT8", "shape": [1, 6], "parameters": {"binary_data_size": size}}
    with pytest.raises(Refusal, match=said):
        read(model, {"inputs": [item]}, tail)


def test_other_refusals(model: Model) -> None:
    with pytest.raises(Refusal) as caught:
        read(model, {"inputs": [tensor()]}, content_encoding="gzip")
    assert caught.value.status == 415
    with pytest.raises(Refusal) as caught:
        read(model, b" " * 30_000)
    assert caught.value.status == 413
    for length in ("-1", "x", "99999", "9" * 50):
        with pytest.raises(Refusal, match="Content-Length"):
            read(model, {"inputs": [tensor()]}, inference_header_content_length=length)
    for body, pin in ((bytes(7), "0"), (b"", "0"), (bytes(54), "0"), (bytes(6), "9"), (bytes(6), "x")):
        with pytest.raises(Refusal):
            protocol.read({"content-type": "application/octet-stream", "x-subnet": pin}, body, model, LIMITS)


# -- the model itself -------------------------------------------------------------------------------------------------


def test_requests_run_together_answer_as_alone(model: Model) -> None:
    draw = np.random.default_rng(3)
    requests = [[draw.integers(0, 256, (rows, 6), dtype=np.uint8)] for rows in (1, 3, 2)]
    for subnet in range(3):
        together = model.run(subnet, requests)
        for request, outputs in zip(requests, together, strict=True):
            want = model.family.run(request[0], entry=subnet)
            assert outputs[0].shape == want.shape
            np.testing.assert_allclose(outputs[0], want, rtol=1e-5, atol=1e-6)


def test_an_artifact_is_measured(artifact: Path) -> None:
    family = load(artifact)
    table = measure(family, slo_s=0.5, rounds=1)
    assert table.rows[0] == 1
    assert len(table) == 3
    assert list(table.quality) == [entry.measured["accuracy"] for entry in family.entries]
    assert [port.metadata()["shape"] for port in inputs_of(family)] == [[-1, 6]]
    assert samples(family, 5)[0].shape == (5, 6)
