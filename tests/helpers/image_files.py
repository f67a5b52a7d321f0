"""Image files of digits."""

from PIL import Image


def write_images(data, indices, folder, *, flat=False):
    for index in indices:
        parent = folder if flat else folder / data.classes[int(data.labels[index])]
        parent.mkdir(parents=True, exist_ok=True)
        pixels = (data.inputs([index])[0, 0] * 255).round().byte().numpy()
        Image.fromarray(pixels).save(parent / f"{index:04d}.png")
