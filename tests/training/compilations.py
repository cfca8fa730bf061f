"""Count what JAX compiles during a block of code."""

import contextlib

import jax


@contextlib.contextmanager
def compilations():
    """List the seconds that each program took that was compiled meanwhile."""
    found = []

    def listen(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
