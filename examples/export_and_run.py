"""python examples/export_and_run.py MODEL IMAGE     export a timm folder, and classify an image with onnxruntime

MODEL is a folder that `learngene pull` or `learngene expand` made. The second half of the file needs only onnxruntime,
numpy and Pillow: copy it to a device together with the ONNX file.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image


def classify(file: Path, image: Path) -> list[tuple[str, float]]:
    """The three most likely classes of an image, with their probabilities."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    facts = json.loads(session.get_modelmeta().custom_metadata_map["learngene"])
    channels, height, width = facts["input"]["size"]
    prepared = facts["preprocessing"]
    picture = Image.open(image).convert("L" if channels == 1 else "RGB")
    scale = max(width, height) / prepared["crop_pct"] / min(picture.size)
    picture = picture.resize([round(side * scale) for side in picture.size], Image.Resampling.BICUBIC)
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    pixels = np.asarray(picture.crop((left, top, left + width, top + height)), np.float32) / 255
    pixels = pixels.reshape(height, width, channels)
    normalised = (pixels - np.float32(prepared["mean"])) / np.float32(prepared["std"])
    logits = session.run(None, {"images": normalised.transpose(2, 0, 1)[None]})[0][0]
    shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    return [(facts["labels"][index], float(shares[index])) for index in np.argsort(-shares)[:3]]


def main(model: str, image: str) -> None:
    """Export a model to a temporary folder and classify one image."""
    import ray_learngene as lg

    with tempfile.TemporaryDirectory() as folder:
        (made,) = lg.export(model, out=Path(folder) / "onnx")
        for name, share in classify(made.path / "model.onnx", Path(image)):
            print(f"{100 * share:6.2f} %  {name}")


if __name__ == "__main__":
    main(*sys.argv[1:])
