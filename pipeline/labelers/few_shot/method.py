"""A few annotated images as a labeling method: classes that a user names, from what the generator knows."""

from dataclasses import dataclass
from pathlib import Path

from labelmill.pipeline.annotations.regenerate import check_checkpoint
from labelmill.pipeline.generator.sampling import Sampler
from labelmill.pipeline.labelers.few_shot.findings import few_shot_findings
from labelmill.pipeline.labelers.few_shot.fit import fit_few_shot
from labelmill.pipeline.labelers.few_shot.fitted import FittedFewShot
from labelmill.pipeline.labelers.few_shot.labeler import FewShotLabeler, check_few_shot, check_fit_memory, check_memory
from labelmill.pipeline.labelers.few_shot.shots import read_set, shots_of_annotations
from labelmill.schemas.config import QualityConfig
from labelmill.schemas.labeler_findings import LabelerFindings
from labelmill.schemas.labelers.few_shot import FewShotConfig


@dataclass(frozen=True)
class _Opened:
    labeler: FewShotLabeler
    findings: LabelerFindings

    def guide(self) -> dict[str, bytes]:
        return {}


class _FewShot:
    config = FewShotConfig
    guide_file = None

    def check_rules(self, config: FewShotConfig, quality: QualityConfig) -> None:
        """The first class is the background, so there is a foreground to judge."""

    def check(self, config: FewShotConfig, sampler: Sampler) -> None:
        check_few_shot(config, sampler)

    def check_inputs(self, config: FewShotConfig, sampler: Sampler, checkpoint_sha256: str | None) -> None:
        annotations = read_set(config)
        if checkpoint_sha256 is not None:
            check_checkpoint(annotations, checkpoint_sha256)
        check_memory(config, sampler, len(annotations.about.classes))
        check_fit_memory(config, sampler, len(annotations))

    def inputs(self, config: FewShotConfig) -> dict[str, str]:
        return {"annotations": read_set(config).sha256}

    def taught_keys(self, config: FewShotConfig) -> frozenset[str]:
        return frozenset(read_set(config).keys)

    def fit(self, config: FewShotConfig, sampler: Sampler, checkpoint_sha256: str | None, work: Path) -> bytes:
        shots = shots_of_annotations(config, sampler, checkpoint_sha256)
        return fit_few_shot(config, sampler, shots, checkpoint_sha256, work=work).to_bytes()

    def open(self, config: FewShotConfig, sampler: Sampler, checkpoint_sha256: str | None, fitted: bytes) -> _Opened:
        found = FittedFewShot.from_bytes(fitted, config, sampler.generator.spec, sampler.device, checkpoint_sha256)
        return _Opened(found.labeler(sampler), few_shot_findings(found.provenance))

    def describe(self, config: FewShotConfig) -> str:
        return f"the labeler on the annotated images of {config.annotations}"


METHOD = _FewShot()
