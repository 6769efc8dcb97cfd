"""Recognition of class scores, embeddings, segmentation and text, and reading of metadata."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gemel.bundles.decode_specs import ClassificationDecode, EmbeddingDecode, OcrDecode, RawDecode, SegmentationDecode
from gemel.compiler.recognition import Evidence, MeasuredOutput, Recognised, read_metadata, recognise_outputs
from gemel.errors import ModelError

RNG = np.random.default_rng(0)


def recognise(task: str, *outputs: MeasuredOutput, metadata: dict[str, str] | None = None, **said: Any) -> Recognised:
    """Recognise outputs of a model with an input of 32 x 32 pixels."""
    return recognise_outputs(Evidence("m.onnx", task, outputs, (32, 32), read_metadata(metadata or {}), **said))


def of(*shape: int, name: str = "o", activation: Any = None, classes: int | None = None) -> MeasuredOutput:
    """Return an output of values far below 0 and above 1."""
    values: NDArray[Any] = (RNG.standard_normal(shape) * 5).astype(np.float32)
    if activation == "softmax":
        values = np.exp(values) / np.exp(values).sum(-1, keepdims=True)
    elif activation == "sigmoid":
        values = 1 / (1 + np.exp(-values))
    return MeasuredOutput(name, values, activation, classes)


def numbers(*shape: int, classes: int | None = None) -> MeasuredOutput:
    return MeasuredOutput("n", np.zeros(shape, np.int64), None, classes)


@pytest.mark.parametrize(
    ("output", "activation", "multi_label"),
    [
        (of(1, 5), "softmax", False),
        (of(1, 5, activation="softmax"), "none", False),
        (of(1, 5, activation="sigmoid"), "none", True),
        (of(1, 1), "sigmoid", False),
        (of(1, 1, activation="sigmoid"), "none", False),
        (of(1, 5, 1, 1), "softmax", False),
    ],
)
def test_activations_of_classifiers(output: MeasuredOutput, activation: str, multi_label: bool) -> None:
    decode = recognise("classification", output).decode
    assert isinstance(decode, ClassificationDecode)
    assert (decode.activation, decode.multi_label) == (activation, multi_label)
    assert decode.classes == output.shape[1]


def test_a_softmax_that_is_written_out_shows_in_the_values() -> None:
    values = of(1, 5, activation="softmax").values
    decode = recognise("classification", MeasuredOutput("o", values)).decode
    assert isinstance(decode, ClassificationDecode)
    assert decode.activation == "none"


@pytest.mark.parametrize(("word", "multi_label"), [("sigmoid", True), ("softmax", False), ("none", False)])
def test_the_workload_decides_on_the_activation(word: str, multi_label: bool) -> None:
    decode = recognise("classification", of(1, 5), activation=word).decode
    assert isinstance(decode, ClassificationDecode)
    assert (decode.activation, decode.multi_label) == (word, multi_label)


def test_class_numbers() -> None:
    decode = recognise("classification", numbers(1, classes=7)).decode
    assert isinstance(decode, ClassificationDecode)
    assert (decode.class_numbers, decode.classes, decode.activation) == (True, 7, "none")


def test_the_output_with_as_many_values_as_labels_is_taken() -> None:
    found = recognise("classification", of(1, 8, name="features"), of(1, 3, name="scores"), labels=["a", "b", "c"])
    assert found.first == "scores"


def test_scores_of_the_best_classes_are_no_scores_of_all() -> None:
    best = of(1, 3, name="probabilities", activation="softmax")
    with pytest.raises(ModelError, match=r"task classification with outputs n int64 \[1, 3\], probabilities"):
        recognise("classification", numbers(1, 3, classes=9), best)
    with pytest.raises(ModelError, match="no decoder for task embedding"):
        recognise("embedding", numbers(1, 3, classes=9), best)
    found = recognise("classification", of(1, 1, activation="sigmoid"), numbers(1, 1, classes=9))
    assert isinstance(found.decode, ClassificationDecode)
    assert (found.first, found.decode.class_numbers, found.decode.classes) == ("n", True, 9)
    # Whether each of all classes is there, beside the classes' scores.
    assert recognise("classification", of(1, 3), numbers(1, 3)).first == "o"


def test_a_vector_of_length_1_is_an_embedding_unless_the_workload_says_more() -> None:
    values = of(1, 16).values
    vector = MeasuredOutput("v", values / np.linalg.norm(values))
    with pytest.raises(ModelError, match="no decoder for task classification"):
        recognise("classification", vector)
    assert recognise("classification", vector, activation="softmax").first == "v"
    assert recognise("classification", vector, labels=[str(each) for each in range(16)]).first == "v"
    assert recognise("embedding", vector).first == "v"


def test_embedding_of_several_feature_maps_is_the_deepest() -> None:
    maps = [of(1, 8, 16, 16, name="stem"), of(1, 32, 2, 2, name="deep"), of(1, 64, 2, 2, name="last"), of(1, 8, 4, 4)]
    assert recognise("embedding", *maps).first == "last"
    assert recognise("embedding", *maps, of(1, 8, name="pooled")).first == "pooled"


def test_embeddings_are_checked() -> None:
    found = recognise("embedding", of(1, 4, 8, name="tokens"), of(1, 8, name="pooled"))
    assert isinstance(found.decode, EmbeddingDecode)
    assert found.first == "pooled"
    for output in (of(1, 4, 8), numbers(1, 8)):
        with pytest.raises(ModelError, match=r"task embedding with outputs .*embedding: floats \[N, D\].*task: raw"):
            recognise("embedding", output)


def test_a_map_of_one_class_has_a_background() -> None:
    found = recognise("segmentation", numbers(1, 8, 8), labels=["road"])
    assert isinstance(found.decode, SegmentationDecode)
    assert (found.decode.classes, found.labels) == (2, ("background", "road"))


def test_segmentation() -> None:
    for output, classes, class_numbers, activation in (
        (of(1, 5, 8, 8), 5, False, "softmax"),
        (of(1, 1, 8, 8), 1, False, "sigmoid"),
        (of(1, 1, 8, 8, activation="sigmoid"), 1, False, "none"),
        (numbers(1, 8, 8, classes=4), 4, True, "none"),
        (numbers(1, 1, 8, 8, classes=4), 4, True, "none"),
    ):
        decode = recognise("segmentation", output).decode
        assert isinstance(decode, SegmentationDecode)
        found = (decode.output, decode.classes, decode.class_numbers, decode.activation)
        assert found == (output.name, classes, class_numbers, activation)


def test_segmentation_with_the_classes_last() -> None:
    for output, classes, layout in (
        (of(1, 8, 8, 5), 5, "NHWC"),
        (of(1, 8, 8, 1), 1, "NHWC"),
        (of(1, 7, 7, 2), 2, "NHWC"),
        (numbers(1, 8, 8, 1, classes=4), 4, "NHWC"),
        (of(1, 8, 8, 8), 8, "NCHW"),
        (of(1, 8, 4, 3), 8, "NCHW"),  # a map of neither order
    ):
        decode = recognise("segmentation", output).decode
        assert isinstance(decode, SegmentationDecode)
        assert (decode.classes, decode.layout) == (classes, layout)


def test_masks_of_object_queries_are_no_classes_of_pixels() -> None:
    masks, maps = of(1, 5, 8, 8, name="masks_queries_logits"), of(1, 6, 8, 8, name="hidden_state")
    with pytest.raises(ModelError, match=r"no decoder for task segmentation with outputs classes .*\[1, 5, 4\]"):
        recognise("segmentation", of(1, 5, 4, name="classes"), masks, maps)
    # Without classes of queries, the channels of a mask are classes.
    assert recognise("segmentation", of(1, 7, 4), masks).decode.output == "masks_queries_logits"  # type: ignore[union-attr]


def test_text() -> None:
    characters = {"character": "a\nb\nc"}
    for columns, charset in ((5, ("", "a", "b", "c", " ")), (4, ("", "a", "b", "c")), (3, ("a", "b", "c"))):
        decode = recognise("ocr", of(1, 9, columns, activation="softmax"), metadata=characters).decode
        assert isinstance(decode, OcrDecode)
        assert (decode.charset, decode.blank, decode.layout, decode.activation) == (charset, 0, "NTC", "none")
    decode = recognise("ocr", of(9, 1, 3), labels=["x", "y"]).decode
    assert isinstance(decode, OcrDecode)
    assert (decode.charset, decode.layout, decode.activation) == (("", "x", "y"), "TNC", "softmax")


def test_a_space_that_the_list_of_characters_lacks_tells_paddleocr() -> None:
    inputs = [recognise("ocr", of(1, 9, columns), labels=("a", "b")).input for columns in (4, 3)]
    assert inputs[0]["color"] == "bgr" and inputs[0]["rounding"] == "up" and not inputs[1]


def test_text_needs_characters() -> None:
    with pytest.raises(ModelError, match="does not name its 4 characters; give labels: FILE"):
        recognise("ocr", of(1, 9, 5))
    with pytest.raises(ModelError, match="2 characters are given; the model has 9 classes"):
        recognise("ocr", of(1, 9, 9), labels=["x", "y"])


def test_characters_of_other_models_are_their_class_names() -> None:
    metadata = read_metadata({"character": "0\n90\n180\n270"})
    assert metadata.class_names("classification") == ("0", "90", "180", "270")
    assert metadata.class_names("ocr") is None


def test_raw_takes_anything() -> None:
    assert isinstance(recognise("raw", numbers(1, 2, 3, 4, 5)).decode, RawDecode)


def test_metadata() -> None:
    found = read_metadata(
        {
            "author": "Ultralytics",
            "task": "pose",
            "names": "{0: 'person', 1: \"don't\"}",
            "imgsz": "[480, 640]",
            "kpt_shape": "[17, 3]",
            "args": "{'nms': True}",
            "stride": "32",
        }
    )
    assert (found.task, found.names, found.size, found.keypoints) == ("pose", ("person", "don't"), (480, 640), (17, 3))
    assert found.end_to_end
    assert found.input["fit"] == "letterbox-center"
    assert read_metadata({"names": "['a', 'b']", "character": "x\ny\n"}).characters == ("x", "y")


def test_metadata_of_libreyolo() -> None:
    entries = {"model_family": "yolo9", "task": "semantic", "names": '{"0": "a", "1": "b"}', "letterbox_pad": "topleft"}
    found = read_metadata(entries)
    assert (found.family, found.task, found.names, found.fit) == ("yolo9", "segmentation", ("a", "b"), "letterbox")
    assert not found.ultralytics and not found.input


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 5000, "__import__('os')", "{0: 'a', 2: 'b'}", "{0: 1}", "1" * 5000, "'" + "x" * (2 << 20)]
)
def test_metadata_that_make_no_sense_are_left_out(text: str) -> None:
    entries = dict.fromkeys(("names", "imgsz", "kpt_shape", "args", "end2end", "nms", "task"), text)
    found = read_metadata(entries)
    assert (found.names, found.keypoints, found.end_to_end, found.task) == (None, None, False, None)
