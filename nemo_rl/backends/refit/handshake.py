"""One handshake per bucket over the control store, for media without one of their own.

The sender announces a bucket, every receiver acknowledges it when it has its own copy,
and the last acknowledgement frees the place that the bucket was in. Shared by memory
and files; knows neither.
"""

from __future__ import annotations

import json
from typing import Any

from nemo_rl.backends.refit.buckets import Bucket
from nemo_rl.backends.refit.control import Connection


class Announcer:
    """The sending stage's half.

    Args:
        connection: of this stage.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        count = connection.link.num_receivers
        self._receivers = [f"receiver {index}" for index in range(count)]

    def announce(self, bucket: Bucket, **facts: Any) -> None:
        """Tell all receivers that the bucket is there, and where."""
        self._connection.set(_key("there", bucket), json.dumps(facts))

    def await_copies(self, bucket: Bucket) -> None:
        """Wait until every receiver has its own copy.

        Raises:
            RefitError: one has not, in time.
        """
        free = _key("copied", bucket)
        what = f"all receivers to copy {bucket}"
        self._connection.wait([free], what, peers=self._receivers)
        self._connection.delete(free, _key("there", bucket), _key("copies", bucket))


class Listener:
    """A receiver's half.

    Args:
        connection: of this receiver.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def await_bucket(self, bucket: Bucket) -> dict[str, Any]:
        """Wait for the bucket; where it is.

        Raises:
            RefitError: it did not come in time.
        """
        there = _key("there", bucket)
        peers = [f"stage {bucket.stage}"]
        self._connection.wait([there], str(bucket), peers=peers)
        return json.loads(self._connection.get(there))

    def copied(self, bucket: Bucket) -> None:
        """Say that this receiver no longer needs the place of the bucket."""
        copies = self._connection.add(_key("copies", bucket))
        if copies == self._connection.link.num_receivers:
            self._connection.set(_key("copied", bucket), "")


def _key(what: str, bucket: Bucket) -> str:
    return f"{what}/{bucket.stage}/{bucket.index}"
