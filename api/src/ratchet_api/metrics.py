"""Names of the Prometheus series that one room exports and another queries.

Room: api. Pure; touches nothing. Every gateway series carries LABELS; the extra ones are named beside it.
The gateway creates the series of an arm with value 0 as soon as it knows the arm, so that `increase()`
sees the first event.
"""

LABELS = ("cycle_namespace", "cycle", "version")

REQUESTS = "ratchet_gateway_requests_total"  # + code: HTTP status answered to the client
DURATION = "ratchet_gateway_request_duration_seconds"  # histogram, whole answer
TIME_TO_FIRST_TOKEN = "ratchet_gateway_time_to_first_token_seconds"  # histogram, first non-empty content
INTER_TOKEN = "ratchet_gateway_inter_token_seconds"  # histogram, streaming only
TOKENS = "ratchet_gateway_tokens_total"  # + type: prompt | completion
FINISH = "ratchet_gateway_finish_total"  # + reason: stop | length | ...
FEEDBACK = "ratchet_gateway_feedback_total"  # + value: up | down
WEIGHT = "ratchet_gateway_weight"  # gauge, percent of sessions sent to the version
INTERACTIONS = "ratchet_gateway_interactions_total"  # + state: spooled | uploaded | dropped

# Exported by a running stage with STAGE_LABELS.
STAGE_LABELS = ("cycle_namespace", "cycle", "version", "stage")
STAGE_STEP = "ratchet_stage_step"
STAGE_STEPS = "ratchet_stage_steps"
STAGE_LOSS = "ratchet_stage_loss"
STAGE_VALIDATION_LOSS = "ratchet_stage_validation_loss"
STAGE_TOKENS_PER_SECOND = "ratchet_stage_tokens_per_second"
STAGE_ETA = "ratchet_stage_eta_seconds"

LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0)
"""Seconds. Finer than the usual default between 1 and 32 s, where answers of language models live."""
