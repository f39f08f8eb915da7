"""What a person should know of a fit before using it: clusters without a sure name, classes without clusters."""

from collections.abc import Iterator

from pipeline.labelers.fitted_feature_clusters import ClusterRecord, DiscoveryRecord, Provenance


def findings(provenance: Provenance) -> list[str]:
    """A line for each, none where all is well."""
    return [
        *_unsure(provenance.clusters),
        *_without_clusters(provenance),
        *(_rarely_seen(record) for record in provenance.discoveries if record.num_nearer < record.num_positive),
    ]


def _unsure(clusters: list[ClusterRecord]) -> Iterator[str]:
    unsure = {number: record for number, record in enumerate(clusters) if record.is_unsure}
    if unsure:
        share, becomes = sum(record.share for record in unsure.values()), next(iter(unsure.values())).name
        yield (
            f"unsure clusters, {share:.1%} of all pixels, which become {becomes}: "
            f"{', '.join(f'{number} (nearest {record.nearest})' for number, record in unsure.items())}"
        )


def _without_clusters(provenance: Provenance) -> Iterator[str]:
    borne = {record.name for record in provenance.clusters if not record.is_unsure}
    missing = [name for name in provenance.classes if name not in borne]
    if missing:
        yield f"classes without a cluster, which no mask will show: {', '.join(missing)}"


def _rarely_seen(record: DiscoveryRecord) -> str:
    return (
        f"discovery of {record.prompt!r}: only {record.num_nearer} of {record.num_scored} images look more like it "
        f"than like {record.against!r}, but {record.num_positive} were learned from; what it found may be another thing"
    )
