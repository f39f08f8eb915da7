"""Oracle A as the person who annotates images of a generator, for labelers that learn from a few of them."""

import numpy as np

from labelmill.pipeline.benchmark.oracle.oracle import open_oracle
from labelmill.pipeline.generator.sampling import Sampler
from labelmill.pipeline.labelers.base import Labeler
from labelmill.pipeline.labelers.few_shot.fit import fit_few_shot
from labelmill.pipeline.labelers.few_shot.shots import Shots, shots_of_seeds
from labelmill.schemas.labelers.few_shot import FewShotConfig

ANNOTATED_SEEDS = range(900_000_000, 901_000_000)
"""Images that may be annotated; no other measurement looks at them."""
FEW_SHOT = FewShotConfig(method="few_shot", annotations="by oracle A")
"""The few-shot labeler's defaults; there is no folder."""


def annotated_shots(sampler: Sampler, seeds: range) -> Shots:
    """Images of a generator with oracle A's masks of all classes. Raises OracleError for a size that it does not
    judge."""
    oracle = open_oracle("a", sampler.generator.spec.resolution, sampler.device)
    masks = [oracle.segment(batch.images_BCHW).cpu().numpy() for batch in sampler.batches(seeds)]
    return shots_of_seeds(sampler, seeds, np.concatenate(masks), oracle.classes)


def few_shot_labeler(sampler: Sampler, num_images: int, config: FewShotConfig = FEW_SHOT) -> Labeler:
    """The few-shot labeler, taught by the first annotated images."""
    shots = annotated_shots(sampler, ANNOTATED_SEEDS[:num_images])
    return fit_few_shot(config, sampler, shots).labeler(sampler)
