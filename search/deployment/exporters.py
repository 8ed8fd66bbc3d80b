"""Write and run exported models: ONNX in float32 and in 8-bit integers, torch.export programs."""

from __future__ import annotations

import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from search.deployment.parity import Outputs, central_pixels
from trainables.images import MAX_SQUEEZED
from trainables.levels import DEFAULT_LEVELS
from trainables.models.export_module import ExportModule
from trainables.models.model import Model
from trainables.models.model_card import ModelCard

INPUT, PROBABILITIES, OOD_SCORE = "images", "probabilities", "ood_score"
"""Names of an exported graph's input and outputs."""
_BATCH_SIZE = 16
_QUANTISED = ("Conv", "MatMul", "Gemm", "Add", "Concat", "MaxPool", "GlobalAveragePool")


def output_names(model: Model) -> list[str]:
    """Return the names of a graph's outputs."""
    return [PROBABILITIES] if model.ood_scorer is None else [PROBABILITIES, OOD_SCORE]


def write_onnx(model: Model, path: Path) -> None:
    """Write an ONNX file, with the weights inside and a dynamic batch size."""
    import onnx

    with _quiet():
        program = torch.onnx.export(
            ExportModule(model),
            (_example(model),),
            dynamo=True,
            input_names=[INPUT],
            output_names=output_names(model),
            dynamic_shapes={"images": {0: torch.export.Dim("n")}},
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    graph: Any = program.model_proto
    _describe(graph, model)
    onnx.checker.check_model(graph)
    path.write_bytes(graph.SerializeToString())


def write_int8(model: Model, decoded: np.ndarray, path: Path) -> None:
    """Write an ONNX file, statically quantised: convolutions and products in 8-bit integers.

    Args:
        model: The model.
        decoded: Training images, uint8 [n, S, S, 3], which calibrate the ranges of the integers.
        path: The file.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    pixels = central_pixels(model.card, decoded)
    with tempfile.TemporaryDirectory() as scratch, _quiet():
        plain, prepared = Path(scratch) / "plain.onnx", Path(scratch) / "prepared.onnx"
        write_onnx(model, plain)
        quant_pre_process(plain, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            path,
            _CalibrationBatches(pixels),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(_QUANTISED),
            nodes_to_exclude=_ood_nodes(prepared),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    graph = onnx.load(path)
    _describe(graph, model)
    path.write_bytes(graph.SerializeToString())


def _ood_nodes(path: Path) -> list[str]:
    """Return the nodes that only the OOD score needs.

    They stay in float32: they are few, and subtract large numbers.
    """
    import onnx

    graph = onnx.load(path).graph
    producer = {name: node for node in graph.node for name in node.output}

    def ancestors(output: str) -> set[str]:
        found: set[str] = set()
        names = [output]
        while names:
            node = producer.get(names.pop())
            if node is not None and node.name not in found:
                found.add(node.name)
                names += node.input
        return found

    return sorted(ancestors(OOD_SCORE) - ancestors(PROBABILITIES))


def run_onnx(path: Path, pixels: np.ndarray) -> Outputs:
    """Run an ONNX file on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return Outputs.join(
        session.run(None, {INPUT: pixels[i : i + _BATCH_SIZE]})
        for i in range(0, len(pixels), _BATCH_SIZE)
    )


def write_program(model: Model, path: Path) -> None:
    """Write a torch.export program, which `torch.export.load` reads."""
    with _quiet():
        program = torch.export.export(
            ExportModule(model),
            (_example(model),),
            dynamic_shapes={"images": {0: torch.export.Dim("n")}},
        )
        about = {"card.json": _card(model), "licences.json": _licences(model)}
        torch.export.save(program, path, extra_files=about)


def run_program(path: Path, pixels: np.ndarray) -> Outputs:
    """Run a torch.export program."""
    with _quiet():
        module = torch.export.load(path).module()
    with torch.no_grad():
        return Outputs.join(module(part) for part in torch.from_numpy(pixels).split(_BATCH_SIZE))


class _CalibrationBatches:
    """Data reader of onnxruntime's calibration: one batch per call, then None."""

    def __init__(self, pixels: np.ndarray) -> None:
        self._parts: Iterator[np.ndarray] = (
            pixels[i : i + _BATCH_SIZE] for i in range(0, len(pixels), _BATCH_SIZE)
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        part = next(self._parts, None)
        return None if part is None else {INPUT: part}


def _example(model: Model) -> Tensor:
    size = model.card.image_size
    return torch.zeros(2, size, size, 3, dtype=torch.uint8)


def _card(model: Model) -> str:
    return json.dumps(asdict(model.card), ensure_ascii=False)


def _licences(model: Model) -> str:
    """Return the licences of all parts' pretrained weights, by backbone, as JSON."""
    licences = {part.card.backbone: part.card.licence for part in model.parts}
    return json.dumps(licences, ensure_ascii=False)


def _describe(graph: Any, model: Model) -> None:
    """Write classes, card, licences and preprocessing into an ONNX file's metadata."""
    card = model.card
    graph.producer_name = "classifier-search"
    del graph.metadata_props[:]
    for key, value in {
        "classes": json.dumps(list(card.classes), ensure_ascii=False),
        "card": _card(model),
        "licences": _licences(model),
        "preprocessing": f"RGB{_describe_levels(card)}; {_describe_resize_mode(card)}; uint8"
        " [N, H, W, 3]."
        " Normalisation, softmax and temperature are in the graph.",
    }.items():
        graph.metadata_props.add(key=key, value=value)
    if model.ood_scorer is not None:
        graph.metadata_props.add(
            key="ood_score",
            value="[N]: out-of-distribution score, at most 1 for 95% of images like the training"
            " set; above 1 the prediction is not reliable.",
        )


def _describe_levels(card: ModelCard) -> str:
    if card.levels == DEFAULT_LEVELS:
        return ""
    shown = "{:g} to {:g} of integers and {:g} to {:g} of floats".format(*chain(*card.levels))
    return f", images of more than 8 bits scaled from {shown}"


def _describe_resize_mode(card: ModelCard) -> str:
    size = card.image_size
    if card.resize_mode == "crop":
        return (
            f"resize mode crop: shorter side resized to {card.cache_size} pixels (bilinear,"
            f" antialiased), then centre crop of {size} x {size}"
        )
    return (
        f"resize mode pad: longer side resized to {size} pixels, shorter side to the smaller of"
        f" {size} and {MAX_SQUEEZED:g} times its proportion (bilinear, antialiased), then padded"
        f" on both sides to {size} x {size} by repeating the outermost pixels"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters' own warnings: the comparison with PyTorch is what counts."""
    loggers = [logging.getLogger(name) for name in ("", "torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
