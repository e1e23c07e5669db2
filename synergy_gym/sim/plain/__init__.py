"""The simulator in plain Python: the definition of what every decision leads to.

`engine` and `cache` are an engine, the page from which to learn what the simulator does; `server`
gives it a clock and telemetry, `world` puts clients, events and engines on one time line.
"""
