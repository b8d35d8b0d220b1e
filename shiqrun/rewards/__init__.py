"""Rewards score completions: reward models and verifiers. `reward.py` is the contract.

exact_match, math_answer, programs   verifiers that compare a completion with the example's answer
unit_tests                           a verifier that runs the completion's program in the sandbox:
                                     program_tests parses the tests, grading decides a verdict
model                                a sequence classifier: loading reads it, provenance says on which prompts it was
                                     trained
labels                               labels of rewards
"""
