"""The same rounds over Flower: nodes carry opaque bytes, and nothing here knows what they say."""

ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 20),
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",
}
"""Flower and Ray ask nobody, install nothing, leave the choice of GPUs alone, and stay down once shut down.

Freed pieces of large messages go back to the system: by itself glibc keeps them, some two payloads."""
