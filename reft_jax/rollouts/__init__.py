"""Questions, the responses to them, their grades, and figures of these: for training, for what learns from stored responses, for evaluation."""
