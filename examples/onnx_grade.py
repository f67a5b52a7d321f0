"""Grades images by onnxruntime, NumPy and Pillow alone. `python onnx_grade.py model.onnx a.png b.png > grades.csv`."""

import csv
import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def read(path, form):
    """One image as float32 (C, H, W)."""
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode[0] in "IF":
        raise ValueError("more than 8 bits in a pixel")
    image = image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
    mode, (height, width) = "L" if form["channels"] == 1 else "RGB", form["size"]
    image = image.convert(mode) if form["convert_first"] else image
    image = image.resize((width, height), Image.Resampling[form["resample"].upper()]).convert(mode)
    values = np.asarray(image, np.float32).reshape(height, width, form["channels"]) * form["scale"]
    return ((values - form["mean"]) / form["std"]).transpose(2, 0, 1).astype(np.float32)


session = onnxruntime.InferenceSession(sys.argv[1])
about = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
form, classes, threshold = about["petm.preprocessing"], about["petm.classes"], about["petm.threshold"]
if not form or "needs_processor" in form:
    sys.exit(f"These inputs are not prepared by Pillow alone: {form}")
print(f"{threshold['rule']}: suspect from a suspicion of {threshold['value']} on", file=sys.stderr)
table = csv.writer(sys.stdout, lineterminator="\n")
table.writerow(["input", "label", "label_name", "probability", "suspicion", "grade", "reason"])
for path in sys.argv[2:]:
    try:
        label, suspicion, probability, trusted, *_ = session.run(None, {"x": read(path, form)[None]})
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        table.writerow([path, "", "", "", "", "unreadable", error])
        continue
    name, grade = classes[label[0]] if classes else label[0], "trusted" if trusted[0] else "suspect"
    table.writerow([path, label[0], name, probability[0], suspicion[0], grade, ""])
