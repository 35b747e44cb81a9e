"""The Open Inference Protocol v2 (KServe "Predict Protocol - Version 2") with its binary tensor data extension.

Three forms of a request: JSON; JSON with binary tensors behind it (`Inference-Header-Content-Length` says where the
JSON ends); and, beyond the protocol, `application/octet-stream`: the bytes of the one input and nothing else.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from pliant_runtime.serving.messages import JSON, OCTETS, Limits, Refusal, Response
from pliant_runtime.serving.model import DATATYPES, Model, Port

Array = NDArray[Any]
HEADER_LENGTH = "inference-header-content-length"
SUBNET = "x-subnet"


@dataclass(frozen=True)
class Inference:
    """What is asked for.

    Args:
        arrays: the inputs in the order of the model.
        rows: samples in each.
        pin: the sub-network that must answer.
        promise_s: seconds within which the client wants an answer.
        wanted: outputs to send, and whether in binary.
        number: the client's own id.
        bare: whether the answer is the bytes of the first output alone.
    """

    arrays: list[Array]
    rows: int
    pin: int | None
    promise_s: float | None
    wanted: tuple[tuple[int, bool], ...]
    number: str | None = None
    bare: bool = False


def _bad(reason: str) -> NoReturn:
    raise Refusal(400, reason)


def read(headers: Mapping[str, str], body: bytes, model: Model, limits: Limits) -> Inference:
    """The inference a request asks for.

    Raises:
        Refusal: 400 or 415, with the reason.
    """
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise Refusal(415, f"content encoding {headers['content-encoding']!r} is not supported; send plain bytes")
    length = headers.get(HEADER_LENGTH)
    kind = headers.get("content-type", JSON).partition(";")[0].strip().lower()
    if length is None and kind == OCTETS:
        return _octets(headers, body, model, limits)
    split = len(body)
    if length is not None:
        if not (length.isascii() and length.isdecimal()) or len(length) > 12 or int(length) > len(body):
            _bad(f"Inference-Header-Content-Length must lie between 0 and the body's {len(body)} bytes")
        split = int(length)
    if split > limits.json:
        raise Refusal(413, f"{split} bytes of JSON; at most {limits.json} are taken, send tensors as binary data")
    return _document(_parsed(body[:split]), body[split:], model, limits)


def _parsed(text: bytes) -> dict[str, Any]:
    def constant(name: str) -> NoReturn:
        _bad(f"{name} is no JSON number; send such values as binary data")

    try:
        data = json.loads(text, parse_constant=constant)
    except RecursionError:
        _bad("the JSON is nested too deeply")
    except ValueError as error:
        _bad(f"the body is no JSON ({error})")
    if not isinstance(data, dict):
        _bad(f"the body must be a JSON object, got a {type(data).__name__}")
    return data


def _octets(headers: Mapping[str, str], body: bytes, model: Model, limits: Limits) -> Inference:
    if len(model.inputs) != 1 or not model.inputs[0].row_bytes:
        _bad("this network takes several inputs or rows of free size; use the JSON or binary form")
    port = model.inputs[0]
    rows, rest = divmod(len(body), port.row_bytes)
    if rest or not rows:
        _bad(f"a body of {len(body)} bytes is no whole number of rows of {port.row_bytes} bytes")
    _rows(rows, limits)
    array = np.frombuffer(body, dtype=port.dtype).reshape(rows, *port.row)
    pin = headers.get(SUBNET)
    if pin is not None and not (pin.isascii() and pin.isdecimal() and len(pin) < 6):
        _bad(f"{SUBNET} must be the number of a sub-network, got {pin[:40]!r}")
    return Inference(
        [_whole(array, port)], rows, _pin(None if pin is None else int(pin), model), None, ((0, True),), bare=True
    )


def _document(data: dict[str, Any], tail: bytes, model: Model, limits: Limits) -> Inference:
    inputs = data.get("inputs")
    if not isinstance(inputs, list):
        _bad("`inputs` must be a list of tensors")
    ports = {port.name: port for port in model.inputs}
    found: dict[str, Array] = {}
    place = 0
    for item in inputs:
        if not isinstance(item, dict):
            _bad("every input must be an object with name, shape, datatype and data")
        name = item.get("name")
        if not isinstance(name, str) or name not in ports:
            _bad(f"no input {str(name)[:60]!r}; this network takes {', '.join(ports)}")
        if name in found:
            _bad(f"input {name!r} is given twice")
        found[name], place = _tensor(item, ports[name], tail, place, limits)
    if place != len(tail):
        _bad(f"{len(tail) - place} bytes of binary data belong to no input")
    if missing := [name for name in ports if name not in found]:
        _bad(f"input {missing[0]!r} is missing")
    arrays = [found[port.name] for port in model.inputs]
    if len({len(array) for array in arrays}) > 1:
        _bad(f"inputs differ in rows: {', '.join(f'{name} has {len(array)}' for name, array in found.items())}")
    parameters = _parameters(data)
    number = data.get("id")
    if number is not None and not isinstance(number, str):
        _bad("`id` must be a string")
    wanted = _wanted(data.get("outputs"), parameters, model)
    pin = parameters.get("subnet")
    if pin is not None and (isinstance(pin, bool) or not isinstance(pin, int)):
        _bad(f"parameter subnet must be the number of a sub-network, got {str(pin)[:60]!r}")
    return Inference(arrays, len(arrays[0]), _pin(pin, model), _promise(parameters), wanted, number)


def _parameters(item: Mapping[str, Any]) -> dict[str, Any]:
    parameters = item.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        _bad("`parameters` must be an object")
    return parameters


def _promise(parameters: Mapping[str, Any]) -> float | None:
    timeout = parameters.get("timeout")
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int) or not 0 < timeout < 1 << 53:
        _bad("parameter timeout must be a positive whole number of microseconds")
    return timeout / 1e6


def _pin(pin: int | None, model: Model) -> int | None:
    if pin is not None and not 0 <= pin < len(model.table):
        _bad(f"there are the sub-networks 0 to {len(model.table) - 1}, got {pin}")
    return pin


def _rows(rows: int, limits: Limits) -> None:
    if not 1 <= rows <= limits.rows:
        _bad(f"a request carries 1 to {limits.rows} rows, got {rows}")


def _tensor(item: Mapping[str, Any], port: Port, tail: bytes, place: int, limits: Limits) -> tuple[Array, int]:
    """The array of one input, and where the binary data of the next one begin."""
    if item.get("datatype") != port.datatype:
        _bad(f"input {port.name!r} takes {port.datatype}, got {str(item.get('datatype'))[:60]!r}")
    shape = item.get("shape")
    if not isinstance(shape, list) or any(
        isinstance(s, bool) or not isinstance(s, int) or not 0 <= s < 1 << 31 for s in shape
    ):
        _bad(f"the shape of input {port.name!r} must be a list of whole numbers")
    fits = len(shape) == len(port.row) + 1 and all(
        want in (-1, got) for want, got in zip(port.row, shape[1:], strict=True)
    )
    if not fits:
        _bad(f"input {port.name!r} takes the shape {[-1, *port.row]}, got {shape[:12]}")
    _rows(shape[0], limits)
    count = math.prod(shape)
    if count > limits.body:
        _bad(f"input {port.name!r} has {count} values, at most {limits.body} are taken")
    size = _parameters(item).get("binary_data_size")
    if size is None:
        return _from_json(item.get("data"), shape, count, port), place
    if "data" in item:
        _bad(f"input {port.name!r} has both data and binary_data_size")
    wanted = count * np.dtype(port.dtype).itemsize
    if isinstance(size, bool) or not isinstance(size, int) or size != wanted:
        _bad(f"input {port.name!r} of shape {shape} has {wanted} bytes, binary_data_size says {str(size)[:30]}")
    if place + size > len(tail):
        _bad(f"input {port.name!r} needs {size} bytes of binary data, {len(tail) - place} are there")
    array = np.frombuffer(tail, dtype=port.dtype, count=count, offset=place).reshape(shape)
    return _whole(array, port), place + size


def _whole(array: Array, port: Port) -> Array:
    """Bytes that are no booleans would be undefined behaviour inside the network."""
    if port.dtype == "bool" and array.size and array.view(np.uint8).max() > 1:
        _bad(f"input {port.name!r} is BOOL: its bytes must be 0 or 1")
    return array


def _from_json(data: Any, shape: list[int], count: int, port: Port) -> Array:
    if not isinstance(data, list):
        _bad(f"input {port.name!r} has no data")
    try:
        plain = np.asarray(data)
    except (ValueError, RecursionError, OverflowError) as error:
        raise Refusal(400, f"the data of input {port.name!r} are no regular array") from error
    wanted = np.dtype(port.dtype)
    allowed = {"f": "iuf", "b": "b"}.get(wanted.kind, "iu")
    if plain.size != count or plain.dtype.kind not in allowed:
        _bad(f"input {port.name!r} needs {count} values for {port.datatype}, got {plain.size} of {plain.dtype}")
    if plain.ndim > 1 and list(plain.shape) != shape:
        _bad(f"the data of input {port.name!r} have the shape {list(plain.shape)[:12]}, it says {shape}")
    if allowed == "iu":
        bounds = np.iinfo(wanted)
        if plain.size and (int(plain.min()) < bounds.min or int(plain.max()) > bounds.max):
            _bad(f"the data of input {port.name!r} must lie from {bounds.min} to {bounds.max}")
    with np.errstate(over="ignore"):
        array = plain.reshape(shape).astype(wanted)
    if wanted.kind == "f" and not np.isfinite(array).all():
        _bad(f"the data of input {port.name!r} are too large for {port.datatype}")
    return array


def _wanted(outputs: Any, parameters: Mapping[str, Any], model: Model) -> tuple[tuple[int, bool], ...]:
    default = parameters.get("binary_data_output") is True
    names = {port.name: place for place, port in enumerate(model.outputs)}
    if outputs is None or outputs == []:
        return tuple((place, default) for place in names.values())
    if not isinstance(outputs, list) or len(outputs) > len(names):
        _bad(f"`outputs` must be a list of at most {len(names)} tensors")
    found = []
    for item in outputs:
        name = item.get("name") if isinstance(item, dict) else None
        if not isinstance(name, str) or name not in names:
            _bad(f"no output {str(name)[:60]!r}; there are {', '.join(names)}")
        own = _parameters(item)
        if own.get("classification") is not None:
            _bad("the classification extension is not supported; take the output itself")
        found.append((names[name], own.get("binary_data") is True if "binary_data" in own else default))
    return tuple(found)


def write(asked: Inference, outputs: list[Array], subnet: int, model: Model) -> Response:
    """The answer to an inference."""
    headers = {SUBNET: str(subnet)}
    if asked.bare:
        first = np.ascontiguousarray(outputs[0])
        headers |= {"x-shape": ",".join(map(str, first.shape)), "x-datatype": datatype(first)}
        return Response(200, first.tobytes(), OCTETS, headers)
    tensors, tail = [], []
    for place, binary in asked.wanted:
        array = np.ascontiguousarray(outputs[place])
        tensor: dict[str, Any] = {
            "name": model.outputs[place].name,
            "datatype": datatype(array),
            "shape": list(array.shape),
        }
        if binary:
            tensor["parameters"] = {"binary_data_size": array.nbytes}
            tail.append(array.tobytes())
        else:
            tensor["data"] = _plain(array)
        tensors.append(tensor)
    told: dict[str, Any] = {"model_name": model.name, "model_version": model.version}
    if asked.number is not None:
        told["id"] = asked.number
    told |= {"parameters": {"subnet": subnet}, "outputs": tensors}
    text = json.dumps(told, separators=(",", ":"), allow_nan=False).encode()
    if not tail:
        return Response(200, text, JSON, headers)
    return Response(200, b"".join([text, *tail]), OCTETS, headers | {"Inference-Header-Content-Length": str(len(text))})


def _plain(array: Array) -> list[Any]:
    """Values for JSON, which has no NaN and no infinity: null stands for them."""
    flat: list[Any] = array.ravel().tolist()
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return [value if math.isfinite(value) else None for value in flat]
    return flat


def datatype(array: Array) -> str:
    """The dtype of an array as the protocol writes it."""
    return DATATYPES[array.dtype.name]
