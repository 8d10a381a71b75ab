"""Property tests of this room: repeatable, and patient with a busy machine."""

from hypothesis import HealthCheck, settings

settings.register_profile("domain", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("domain")
