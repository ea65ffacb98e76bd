"""TensorBoard: one event file; ``tensorboard --logdir runs`` shows all runs of a folder."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from google.protobuf.struct_pb2 import Value
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from core.sinks.values import Setting, of_record, settings
from schemas.plan import Plan
from schemas.record import Record

FLUSH_EVERY_S = 5


class TensorBoard:
    """Scalars of each step, and the settings for the page HPARAMS."""

    def __init__(self, folder: Path, run: str, plan: Plan) -> None:
        self._writer = EventFileWriter(str(folder), flush_secs=FLUSH_EVERY_S)
        self._step = 0
        start = SessionStartInfo(group_name=run, start_time_secs=time.time())
        for name, value in settings(plan).items():
            start.hparams[name].MergeFrom(_as_value(value))
        data = HParamsPluginData(session_start_info=start)
        self._writer.add_event(_hparams(metadata.SESSION_START_INFO_TAG, data))

    def log(self, step: int, time_unix_s: float, values: Mapping[str, float]) -> None:
        """One event with a scalar for each value."""
        self._step = step
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._writer.add_event(Event(step=step, wall_time=time_unix_s, summary=Summary(value=scalars)))

    def close(self, record: Record) -> None:
        """The result at the last step."""
        ended_s = (record.started_unix_s or 0.0) + (record.duration_s or 0.0)
        self.log(self._step, ended_s, of_record(record))
        status = api_pb2.STATUS_SUCCESS if record.status == "ok" else api_pb2.STATUS_FAILURE
        data = HParamsPluginData(session_end_info=SessionEndInfo(status=status, end_time_secs=ended_s))
        self._writer.add_event(_hparams(metadata.SESSION_END_INFO_TAG, data))
        self._writer.close()


def _hparams(tag: str, data: HParamsPluginData) -> Event:
    """As ``tensorboard.plugins.hparams.summary`` does it, which would import TensorFlow."""
    held = Summary.Value(tag=tag, metadata=metadata.create_summary_metadata(data), tensor=metadata.NULL_TENSOR)
    return Event(wall_time=time.time(), summary=Summary(value=[held]))


def _as_value(setting: Setting) -> Value:
    if isinstance(setting, bool):
        return Value(bool_value=setting)
    return Value(string_value=setting) if isinstance(setting, str) else Value(number_value=setting)
