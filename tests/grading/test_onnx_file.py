"""ONNX files of strangers: refused in one line, before onnxruntime opens them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from petm.errors import BundleError, ModelError
from petm.grading.onnx_file import check_graph
from petm.grading.onnx_grader import Answer, OnnxGrader

METADATA = {
    "format_version": "4",
    "classes": "[]",
    "inputs": "{}",
    "score": '"a"',
    "threshold": '{"value": 0.5, "rule": "a"}',
    "second_opinion": "false",
}
NONE = {
    "label": np.zeros(1, np.int64), "suspicion": np.zeros(1), "probability_of_error": np.zeros(1),
    "trusted": np.ones(1, bool), "second": np.zeros((1, 2), np.float32),
}  # fmt: skip


def graph(
    last: list[Any], held: tuple[TensorProto, ...] = (), functions: tuple[Any, ...] = (), **domains: int
) -> bytes:
    """A graph of petm's form, whose nodes ``last`` make ``base``."""
    constants = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value)) for name, value in NONE.items()
    ]
    kinds = {"label": TensorProto.INT64, "trusted": TensorProto.BOOL, "base": TensorProto.FLOAT}
    kinds |= {"second": TensorProto.FLOAT}
    outputs = [
        helper.make_tensor_value_info(name, kinds.get(name, TensorProto.DOUBLE), None) for name in Answer._fields
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, 4, 4])]
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(name, number) for name, number in domains.items())]
    made = helper.make_graph([*constants, *last], "g", inputs, outputs, held)
    model: ModelProto = helper.make_model(made, opset_imports=opsets, ir_version=8, functions=functions)
    for name, value in METADATA.items():
        model.metadata_props.add(key=f"petm.{name}", value=value)
    return bytes(model.SerializeToString())


def outside(location: str) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1, 2], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "8")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def loop() -> Any:
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Identity", ["v"], ["w"])],
        "body",
        [value("i", TensorProto.INT64, []), value("c", TensorProto.BOOL, []), value("v", TensorProto.FLOAT, [1, 2])],
        [value("d", TensorProto.BOOL, []), value("w", TensorProto.FLOAT, [1, 2])],
    )
    return helper.make_node("Loop", ["", "", "v0"], ["base"], body=body)


IDENTITY = helper.make_node("Identity", ["w"], ["base"])
INSIDE = numpy_helper.from_array(np.ones((1, 2), np.float32), "w")


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (graph([IDENTITY], (outside("../../../etc/passwd"),)), r"weights in '\.\./"),
        (graph([IDENTITY], (outside("/etc/passwd"),)), "weights in '/etc/passwd'"),
        (graph([IDENTITY], (outside("other.data"),)), "weights in 'other.data'"),
        (graph([helper.make_node("Constant", [], ["base"], value=outside("a"))]), "weights in 'a'"),
        (graph([helper.make_node("Evil", ["x"], ["base"], domain="evil.org")], **{"evil.org": 1}), "of 'evil.org'"),
        (graph([loop()], (numpy_helper.from_array(np.ones((1, 2), np.float32), "v0"),)), "a Loop"),
        (graph([IDENTITY], (INSIDE,))[:-3], "a damaged file"),
        (b"\x3a\xff\xff\xff\xff\x7f", "a damaged file"),
        (b"\x3b" * 9, "a damaged file"),
        (b"\xff" * 99, "a damaged file"),
        (b"", "empty file"),
    ],
)
def test_what_no_graph_of_petm_has(tmp_path: Path, content: bytes, got: str) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=rf"expected an ONNX graph, got .*{got}") as caught:
        OnnxGrader(tmp_path / "m.onnx")
    assert len(str(caught.value).splitlines()) == 1


def test_weights_in_its_own_second_file_and_functions_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(graph([IDENTITY], (outside("m.onnx.data"),)))
    (tmp_path / "m.onnx.data").write_bytes(np.array([3, 4], np.float32).tobytes())
    np.testing.assert_array_equal(OnnxGrader(path).run(np.zeros((1, 1, 4, 4), np.float32)).base, [[3, 4]])
    own = helper.make_function("own", "F", ["a"], ["b"], [helper.make_node("Identity", ["a"], ["b"])], [
        helper.make_opsetid("", 17)
    ])  # fmt: skip
    called = helper.make_node("F", ["w"], ["base"], domain="own")
    path.write_bytes(graph([called], (INSIDE,), (own,), own=1))
    check_graph(path)
    np.testing.assert_array_equal(OnnxGrader(path).run(np.zeros((1, 1, 4, 4), np.float32)).base, [[1, 1]])


def test_a_graph_that_fails_as_it_runs(tmp_path: Path) -> None:
    wrong = helper.make_node("Reshape", ["x", "s"], ["base"])
    shape = numpy_helper.from_array(np.array([7, 7], np.int64), "s")
    (tmp_path / "m.onnx").write_bytes(graph([wrong], (shape,)))
    grader = OnnxGrader(tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="model: expected a graph that can run, got ") as caught:
        grader.run(np.zeros((1, 1, 4, 4), np.float32))
    assert len(str(caught.value).splitlines()) == 1
