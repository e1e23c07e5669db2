"""Request traces: public ones and files of one's own."""

from synergy_gym.workload.traces.load import TraceInfo, list_formats, load_trace, trace_info

__all__ = ["TraceInfo", "list_formats", "load_trace", "trace_info"]
