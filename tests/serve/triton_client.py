"""What an unmodified tritonclient does with a server; run by test_triton.py, prints JSON.

It pins packages to versions that cannot be installed beside ours, so it may live in an environment of its own.
"""

import json
import sys

import numpy as np
import tritonclient.http as triton

address, model = sys.argv[1:]
client = triton.InferenceServerClient(address, concurrency=2)
rows = np.array([[10, 200, 30, 4, 5, 6], [1, 2, 3, 40, 50, 60]], np.uint8)
given = triton.InferInput("input", rows.shape, "UINT8")
told: dict[str, object] = {
    "live": client.is_server_live(),
    "ready": client.is_server_ready(),
    "model_ready": client.is_model_ready(model),
    "extensions": client.get_server_metadata()["extensions"],
    "inputs": client.get_model_metadata(model)["inputs"],
    "index": client.get_model_repository_index()[0]["state"],
}
output = client.get_model_metadata(model)["outputs"][0]["name"]
for name, binary in (("binary", True), ("json", False)):
    given.set_data_from_numpy(rows, binary_data=binary)
    wanted = [triton.InferRequestedOutput(output, binary_data=binary)]
    found = client.infer(model, [given], outputs=wanted, request_id="a7", parameters={"subnet": 1}, timeout=5_000_000)
    told[name] = found.as_numpy(output).tolist()
    told[f"{name}_subnet"] = found.get_response()["parameters"]["subnet"]
    told[f"{name}_id"] = found.get_response()["id"]
waiting = [client.async_infer(model, [given]) for _ in range(8)]
told["async"] = [list(each.get_result().as_numpy(output).shape) for each in waiting]
client.load_model(model)
try:
    client.infer(model, [triton.InferInput("other", rows.shape, "UINT8").set_data_from_numpy(rows)])
except triton.InferenceServerException as error:
    told["refused"] = [error.status(), error.message()]
print(json.dumps(told))
