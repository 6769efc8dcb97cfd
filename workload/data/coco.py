"""Reader of object annotations in COCO's JSON format (Lin et al. 2014; https://cocodataset.org/#format-data)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from ...errors import DataError
from .images import Boxes
from .listing import Listing

__all__ = ["list_coco"]


class _Part(BaseModel):
    """Base of the schemas of a COCO file and its entries; fields that are not listed are ignored."""

    model_config = ConfigDict(allow_inf_nan=False)


class _Image(_Part):
    """Entry of a COCO file's list ``images``: one image file."""

    id: int
    file_name: str
    width: int | None = None
    height: int | None = None


class _Annotation(_Part):
    """Entry of a COCO file's list ``annotations``: one object in an image."""

    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    """Left edge, top edge, width and height of the object's box in pixels of the image."""
    iscrowd: int = 0


class _Category(_Part):
    """Entry of a COCO file's list ``categories``: one class of objects."""

    id: int
    name: str


class _Coco(_Part):
    """Schema of a COCO file: images, annotated objects and categories."""

    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


def list_coco(path: Path, labels: Sequence[str] | None, classes: int | None, what: str) -> Listing:
    """Read a COCO file and list its images with their boxes.

    Image files are relative to the JSON's folder, or to a folder ``images`` in it. The class of a category is the
    position of its name in ``labels``; objects of other categories are left out. Without labels, the categories in the
    order of their ids are the classes. Crowds and boxes without area are left out.

    Args:
        path: COCO's JSON file.
        labels: names of the model's classes.
        classes: number of the model's classes, the background not counted; not checked when None.
        what: name of the query and field, for errors.

    Raises:
        DataError: the file is no COCO file, names a missing image or unknown ids, has categories that do not fit the
            model, or has no boxes.
    """
    what_file = f"{what}: {path}"
    try:
        content = _Coco.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{what_file}: cannot be read: {error.strerror or error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
        raise DataError(
            f"{what_file}: {field + ': ' if field else ''}{first['msg']}; a COCO file has images,"
            " annotations with boxes, and categories"
        ) from error
    numbers = _numbers(content.categories, labels, classes, what_file)
    known = {category.id for category in content.categories}
    found: dict[int, list[tuple[int, list[float]]]] = {image.id: [] for image in content.images}
    if len(found) < len(content.images):
        raise DataError(f"{what_file}: images: two have the same id")
    for index, each in enumerate(content.annotations):
        where = f"{what_file}: annotations[{index}]"
        if each.image_id not in found:
            raise DataError(f"{where}.image_id: there is no image {each.image_id}")
        if each.category_id not in known:
            raise DataError(f"{where}.category_id: there is no category {each.category_id}")
        x, y, width, height = each.bbox
        if width < 0 or height < 0:
            raise DataError(f"{where}.bbox: {list(each.bbox)}: width and height (the last two) must not be negative")
        # COCO's own files have a few boxes without area, which no detector can find.
        if width and height and not each.iscrowd and each.category_id in numbers:
            found[each.image_id].append((numbers[each.category_id], [x, y, x + width, y + height]))
    if not any(found.values()):
        of = f" of {', '.join(labels)}" if labels else ""
        raise DataError(f"{what_file}: none of {len(found)} images has a box{of}")
    return Listing(
        what,
        tuple(
            _file(path, image.file_name, f"{what_file}: images[{index}]") for index, image in enumerate(content.images)
        ),
        boxes=tuple(_boxes(found[image.id]) for image in content.images),
        sizes=tuple((image.height, image.width) if image.height and image.width else None for image in content.images),
    )


def _numbers(
    categories: Sequence[_Category], labels: Sequence[str] | None, classes: int | None, where: str
) -> dict[int, int]:
    """Return COCO category id -> class number, for the categories that are classes of the model.

    Raises:
        DataError: the categories do not fit the query's labels or the model's number of classes.
    """
    if labels is None:
        if classes is not None and len(categories) != classes:
            raise DataError(
                f"{where}: {len(categories)} categories for a model with {classes} classes; give the query labels,"
                " which categories are found by"
            )
        return {id_: index for index, id_ in enumerate(sorted(category.id for category in categories))}
    numbers = {category.id: labels.index(category.name) for category in categories if category.name in labels}
    if not numbers:
        names = ", ".join(category.name for category in categories) or "none"
        raise DataError(f"{where}: categories: {names}; none is among the query's labels: {', '.join(labels)}")
    if classes is not None and max(numbers.values()) >= classes:
        last = max(numbers.values())
        raise DataError(
            f"{where}: category {labels[last]!r} is label {last} of the query, counted from 0; its model has"
            f" {classes} classes"
        )
    return numbers


def _file(path: Path, name: str, where: str) -> Path:
    """Return the path of an image file that a COCO file names.

    Raises:
        DataError: the image file is missing.
    """
    for folder in (path.parent, path.parent / "images"):
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"{where}.file_name: {name!r} is neither in {path.parent} nor in {path.parent / 'images'}")


def _boxes(objects: Sequence[tuple[int, list[float]]]) -> Boxes:
    """Return the ground-truth boxes of an image, given pairs of class number and corners (x1 y1 x2 y2)."""
    boxes = torch.tensor([corners for _, corners in objects], dtype=torch.float32).reshape(-1, 4)
    return Boxes(boxes, torch.tensor([number for number, _ in objects], dtype=torch.int64))
