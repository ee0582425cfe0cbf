"""What can go wrong with a grader, in the words of the answer's `metadata.errors`."""

from typing import Literal

Flag = Literal[
    "formula_parse_error",
    "sample_parse_error",
    "truncated_observation_error",
    "unresponsive_reward_error",
    "invalid_variable_error",
    "other_error",
    "python_grader_server_error",
    "python_grader_runtime_error",
    "model_grader_server_error",
    "model_grader_refusal_error",
    "model_grader_parse_error",
]


class GraderFault(Exception):
    """A grader gives no reward. `flags` are set to true in the answer; the sentence is for the grader's author.

    `server_error_type` goes with `python_grader_server_error`.
    """

    def __init__(self, sentence: str, *flags: Flag, server_error_type: str | None = None) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.flags = flags
        self.server_error_type = server_error_type
