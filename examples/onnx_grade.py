"""Grades images by onnxruntime, NumPy and Pillow alone. `python onnx_grade.py model.onnx a.png b.png > grades.csv`."""

import csv
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


def read(path, form):
    """One image as float32 (C, H, W)."""
    image = Image.open(path, formats=FORMATS)
    image.seek(int(getattr(image, "default_image", False)))  # behind it, the first frame of an animation
    tags, of_8_bits = getattr(image, "tag_v2", {}), image.mode == "P" or ";" not in str(image.tile)
    deep = image.mode[0] in "IF" or max(tags.get(258, (8,))) > 8 or ("transparency" in image.info and not of_8_bits)
    if deep or 2 in tags.get(339, ()) or (tags and image.n_frames > 1):
        raise ValueError("other than 8 bits in a pixel" if deep else "several pages, or signed values")
    grey, image = image.mode in ("1", "L", "LA"), ImageOps.exif_transpose(image)
    if "transparency" in image.info or "A" in image.mode:
        bands = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), bands)
        if np.ptp(np.asarray(bands), (0, 1)).max() > 3 >= np.ptp(np.asarray(image), (0, 1)).max():
            raise ValueError("a picture in its transparency alone")
    image = image.convert("L" if grey else "RGB")
    mode, (height, width) = "L" if form["channels"] == 1 else "RGB", form["size"]
    image = image.convert(mode) if form["convert_first"] else image
    resample = Image.Resampling[form["resample"].upper()]
    fit = ImageOps.fit if form.get("resize") == "crop" else Image.Image.resize
    image = fit(image, (width, height), resample).convert(mode)
    values = np.asarray(image, np.float32).reshape(height, width, form["channels"]) * form["scale"]
    return ((values - form["mean"]) / form["std"]).transpose(2, 0, 1).astype(np.float32)


def candidates(base, opinion, first, trusted):
    """The classes that hold the true one with a chosen probability, the most probable first."""
    if not sets:
        return []
    of_base, of_opinion = (np.exp(z - z.max()) / np.exp(z - z.max()).sum() for z in np.float64([base, opinion]))
    believed = (1 - share) * of_base + share * of_opinion
    inside = 1 - believed <= sets["limits"][0 if trusted else 1][0]
    inside[first] = True
    return [each for each in np.argsort(-believed, kind="stable") if inside[each]]


session = onnxruntime.InferenceSession(sys.argv[1])
about = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
form, classes, threshold = about["petm.preprocessing"], about["petm.classes"], about["petm.threshold"]
sets, share = about["petm.sets"], about["petm.second_share"]
if not form or "needs_processor" in form:
    sys.exit(f"These inputs are not prepared by Pillow alone: {form}")
print(f"{threshold['rule']}: suspect from a suspicion of {threshold['value']} on", file=sys.stderr)
second, cascade = None, about["petm.cascade"]
if cascade:  # a second graph looks again at the images for which the first one asks
    path = Path(sys.argv[1]).with_name(cascade["second"])
    if hashlib.sha256(path.read_bytes()).hexdigest() != cascade["sha256"]:
        sys.exit(f"{path} was exported with another graph.")
    second, each = onnxruntime.InferenceSession(path), round(cascade["most"] * 1_000_000)
    full = left = max(1_000_000, 1000 * each)  # how many more it may look at, in millionths
names = classes or list(map(str, range(session.get_outputs()[4].shape[1])))
table = csv.writer(sys.stdout, lineterminator="\n")
table.writerow(["input", "label", "label_name", "probability_of_error", "suspicion", "grade", "candidates", "reason"])
for path in sys.argv[2:]:
    try:
        x = read(path, form)[None]
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        table.writerow([path, "", "", "", "", "unreadable", "", error])
        continue
    label, suspicion, error, trusted, base, opinion, *more = session.run(None, {"x": x})
    if second:
        left = min(full, left + each)
        if more[0][0] and left >= 1_000_000:
            left, given = left - 1_000_000, zip(("x", "base", "features"), (x, base, *more[1:]), strict=False)
            suspicion, error, trusted, opinion = second.run(None, dict(given))
    grade, first = "trusted" if trusted[0] else "suspect", label[0]
    found = json.dumps([names[each] for each in candidates(base[0], opinion[0], first, trusted[0])], ensure_ascii=False)
    table.writerow([path, first, names[first], error[0], suspicion[0], grade, found if sets else "", ""])
