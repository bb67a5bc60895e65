"""From files of events to a prepared data set: formats, sessions, splits, and the built-in simulator."""
