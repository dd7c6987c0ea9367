"""The pipeline around the core: one writer, group commit, timers, dispatch, recovery. It knows ports, not stores."""
