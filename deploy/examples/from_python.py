"""From a generator to a network that segments, in Python, with a picture of each step.

    python deploy/examples/from_python.py

takes about two minutes on 2 cores and writes to out/example. Editors that know `# %%` show it as a notebook.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import labelmill

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, default=Path("out/example"), help="folder for dataset and pictures")
parser.add_argument("--quick", action="store_true", help="a few samples, in seconds; nothing is learned from them")
arguments = parser.parse_args()
arguments.out.mkdir(parents=True, exist_ok=True)
labeling = {"fit_samples": 16, "variants": 4, "crossover": 4, "restarts": 1} if arguments.quick else {"fit_samples": 64}
num_samples, num_epochs = (16, 1) if arguments.quick else (512, 8)

# %% A generator: seeds to images.
generator = labelmill.open_generator("bundled:avatars-32", truncation_psi=0.7)
batch = generator.sample(range(8))
print("images", tuple(batch.images_BCHW.shape), "from w", tuple(batch.ws_BLD.shape))

# %% A labeling method, fitted to the generator without any label, and a look at what it does.
labeler = labelmill.fit_labeler(generator, "style_mixing", **labeling)
labeled = labelmill.label(generator, labeler, seeds=range(8))
labelmill.show(labeled, labeler.classes).save(arguments.out / "1-labels.png")

# %% The dataset of a run: what `labelmill generate` makes of the same values in a file. Rerun to resume.
output = labelmill.make_dataset(
    {
        "name": "example",
        "output": str(arguments.out / "dataset"),
        "generator": {"checkpoint": "bundled:avatars-32", "truncation_psi": 0.7},
        "labeler": {"method": "style_mixing", **labeling},
        "quality": {"enabled": not arguments.quick},
        "dataset": {
            "samples": num_samples,
            "samples_per_shard": num_samples // 4,
            "splits": {"train": 0.75, "val": 0.25},
        },
    }
)

# %% The same dataset for training: images in [0, 1], masks of class indices, 255 to ignore.
import torch  # after labelmill, which settles how its threads wait and keep memory
from torch.nn import functional
from torch.utils.data import DataLoader

training, validation = (labelmill.open_dataset(output, split) for split in ("train", "val"))
print(len(training), "pairs to train on,", len(validation), "to look at; classes", training.classes)

torch.manual_seed(0)
network = torch.nn.Sequential(
    torch.nn.Conv2d(3, 24, 5, padding=2),
    torch.nn.ReLU(),
    torch.nn.Conv2d(24, 24, 5, padding=4, dilation=2),
    torch.nn.ReLU(),
    torch.nn.Conv2d(24, 24, 5, padding=8, dilation=4),
    torch.nn.ReLU(),
    torch.nn.Conv2d(24, len(training.classes), 1),
)
optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
for epoch in range(num_epochs):
    for images_BCHW, masks_BHW in DataLoader(training, batch_size=16, shuffle=True):
        loss = functional.cross_entropy(network(images_BCHW), masks_BHW, ignore_index=255)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    print(f"epoch {epoch}: loss {loss.item():.3f}")

# %% What it learned, on images that it has not seen.
agreements, shown = [], []
with torch.no_grad():
    for number in range(min(8, len(validation))):
        image_CHW, mask_HW = validation[number]
        predicted_HW = network(image_CHW[None])[0].argmax(0)
        known_HW = mask_HW != 255
        agreements.append((predicted_HW == mask_HW)[known_HW].float().mean().item())
        shown.append(replace(validation.sample(number), mask_HW=predicted_HW.byte().numpy()))
print(f"{sum(agreements) / len(agreements):.1%} of the pixels as labeled")
labelmill.show(shown, validation.classes).save(arguments.out / "2-predicted.png")
