"""What a person should know of a fit before using it: clusters without a sure name, classes without clusters.

Whether clusters mean anything shows in how much of the variance of images' colours lies between them: with 4 to 24
clusters, in untrained generators .05 to .45, in the bundled one .68 to .83. Stability tells nothing: noise that is the
same in every image gives the most stable clusters of all.
"""

from collections.abc import Iterator

from labelmill.pipeline.labelers.feature_clusters.fitted import ClusterRecord, ClustersProvenance, DiscoveryRecord
from labelmill.schemas.labeler_findings import LabelerFindings

WEAK_EXPLAINED, DOUBTFUL_EXPLAINED = 0.5, 0.6
_TRY = (
    "look at the pictures that `labelmill fit` leaves beside the labeler; a generator that is trained further, other "
    "labeler.layers or more labeler.clusters may do better"
)


def cluster_findings(provenance: ClustersProvenance) -> LabelerFindings:
    """What `fit` found, in words, and whether it is worth anything."""
    explained = provenance.trial.explained_colour
    found = (
        f"{len(provenance.clusters)} clusters of {', '.join(provenance.layers)}, between which {explained:.0%} of the "
        f"variance of images' colours lies (untrained generators: 5% to 45%; the bundled one: 68% to 83%)"
    )
    doubts = findings(provenance)
    words = [found, *_foreground(provenance), *doubts]
    if explained < WEAK_EXPLAINED:
        weak = f"weak: clusters do not follow what images show: masks would mean nothing; {_TRY}"
        return LabelerFindings(verdict="weak", words=[*words, weak])
    if explained < DOUBTFUL_EXPLAINED or doubts:
        return LabelerFindings(verdict="doubtful", words=[*words, f"doubtful: some masks will be wrong; {_TRY}"])
    return LabelerFindings(verdict="sound", words=words)


def findings(provenance: ClustersProvenance) -> list[str]:
    """A line for each, none where all is well."""
    return [
        *_unsure(provenance.clusters),
        *_without_clusters(provenance),
        *(_rarely_seen(record) for record in provenance.discoveries if record.num_nearer < record.num_positive),
    ]


def _foreground(provenance: ClustersProvenance) -> Iterator[str]:
    agreed = provenance.foreground_agreement
    if agreed is not None:
        use = "decides" if provenance.mixing else "is not used: clusters decide"
        yield f"style mixing's foreground agrees with that of the clusters (mean IoU {agreed:.2f}) and {use}"


def _unsure(clusters: list[ClusterRecord]) -> Iterator[str]:
    unsure = {number: record for number, record in enumerate(clusters) if record.is_unsure}
    if unsure:
        share, becomes = sum(record.share for record in unsure.values()), next(iter(unsure.values())).name
        yield (
            f"unsure clusters, {share:.1%} of all pixels, which become {becomes}: "
            f"{', '.join(f'{number} (nearest {record.nearest})' for number, record in unsure.items())}"
        )


def _without_clusters(provenance: ClustersProvenance) -> Iterator[str]:
    borne = {record.name for record in provenance.clusters if not record.is_unsure}
    missing = [name for name in provenance.classes if name not in borne]
    if missing:
        yield f"classes without a cluster, which no mask will show: {', '.join(missing)}"


def _rarely_seen(record: DiscoveryRecord) -> str:
    return (
        f"discovery of {record.prompt!r}: only {record.num_nearer} of {record.num_scored} images look more like it "
        f"than like {record.against!r}, but {record.num_positive} were learned from; what it found may be another thing"
    )
