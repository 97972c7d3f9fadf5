"""Problems and where they come from."""

from dynamo_cli.datasets.sources import (
    Dataset,
    HubSource,
    JsonlSource,
    read_dataset,
    remarks,
)

__all__ = ["Dataset", "HubSource", "JsonlSource", "read_dataset", "remarks"]
