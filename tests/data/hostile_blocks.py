"""Blocks of known operators that no machine should run, and bundles that hold them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from runtime_edge.formats.bundle import Bundle, open_bundle
from runtime_edge.formats.encoder.parts import VariantInfo
from runtime_edge.formats.manifest import (
    BlockInfo,
    BlockMetadata,
    BundleInfo,
    Calibration,
    Component,
    Cut,
    EncoderInfo,
    ExecutorInfo,
    FrontEndInfo,
    Manifest,
    Metadata,
    SelfTest,
    Variant,
)
from streamsplit_compile.bundle.bundle_writer import write_asset, write_manifest

VALUES = 4


def block(nodes, constants=()):
    """A model from (1, VALUES) to (1, VALUES) float32 with these nodes and constants by name."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, VALUES]) for name in ("input", "output")]
    tensors = [numpy_helper.from_array(np.asarray(values), name) for name, values in dict(constants).items()]
    graph = helper.make_graph(list(nodes), "block", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def asks_for_memory(size: int) -> onnx.ModelProto:
    """A block that spreads its input over `size` bytes before it adds that up again."""
    return block(
        [
            helper.make_node("Expand", ["input", "shape"], ["large"]),
            helper.make_node("Sin", ["large"], ["larger"]),
            helper.make_node("ReduceMax", ["larger", "axes"], ["output"]),
        ],
        {"shape": np.array([size // 4 // VALUES, VALUES]), "axes": np.array([0])},
    )


def computes_for_ever() -> onnx.ModelProto:
    """A block that multiplies large matrices, one after another, for hours and in little memory."""
    side = 2048
    nodes = [
        helper.make_node("ReduceMax", ["input", "axes"], ["one"]),
        helper.make_node("Expand", ["one", "shape"], ["matrix"]),
        *(helper.make_node("MatMul", [f"matrix{i or ''}", "matrix"], [f"matrix{i + 1}"]) for i in range(20_000)),
        helper.make_node("Slice", ["matrix20000", "starts", "ends"], ["output"]),
    ]
    return block(
        nodes,
        {
            "axes": np.array([0, 1]),
            "shape": np.array([side, side]),
            "starts": np.array([0, 0]),
            "ends": np.array([1, VALUES]),
        },
    )


def bundle_of(model: onnx.ModelProto | bytes, directory: Path, key=None, generation: int = 1) -> Bundle:
    """A bundle whose only block is that model, whose self-test wants zeros; signed where a key is given."""
    data = model if isinstance(model, bytes) else model.SerializeToString()
    info = VariantInfo(
        format="onnx", precision="fp32", file=write_asset(directory, "model.onnx", data), bytes=len(data),
        input="input", output="output",
    )  # fmt: skip
    component = Component(
        variants={"onnx-fp32": Variant(executor_info=ExecutorInfo(ssc=info))},
        additional_metadata=BlockMetadata(ssc=BlockInfo()),
    )
    cuts = [
        Cut(index=index, name=name, node=name, shape=(1, VALUES), bytes={}, agreement={})
        for index, name in enumerate(("waveform", "embedding"))
    ]
    about = BundleInfo(
        encoder=EncoderInfo(id="hostile", config={}, weights=f"sha256:{'0' * 64}", embedding_dim=VALUES),
        generation=generation,
        front_end=FrontEndInfo(sample_rate=8000, window_samples=VALUES, hop_samples=VALUES, details={}),
        blocks=["block-00"],
        cuts=cuts,
        targets={},
        server_block_ms=[1.0],
        calibration=Calibration(source="none", windows=0, seed=0),
        self_test=SelfTest(embedding=np.zeros(VALUES, "<f4").tobytes(), tolerance=1e-3),
        parity={},
    )
    manifest = Manifest(
        package_name="hostile", package_version="1", components={"block-00": component},
        additional_metadata=Metadata(ssc=about),
    )  # fmt: skip
    write_manifest(directory, msgspec.structs.replace(manifest), key)
    return open_bundle(directory)
