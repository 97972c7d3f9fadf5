"""Who was right: responses and reference answers in, one of five verdicts each out.

    final_answer (answers)  ->  normal form (normal_form)  ->  equality (equality, in a worker)

Nothing heavy is imported here: math-verify and sympy live in the workers.
"""

from dynamo_cli.grading.grader import GRADER_VERSION, Attempt, Grader

__all__ = ["GRADER_VERSION", "Attempt", "Grader"]
